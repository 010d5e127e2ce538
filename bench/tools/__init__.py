"""Tools of the benchmarks, found as any package is that ``TOOLS_PACKAGE`` names."""
