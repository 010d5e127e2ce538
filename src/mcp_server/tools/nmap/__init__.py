"""The parts of the nmap tool."""
