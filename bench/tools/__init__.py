"""Tools of the benchmarks, in a package that ``TOOLS_PACKAGE`` names."""
