"""The C interface: `s2f.h`, and libs2f.so, which `s2f-capi build` makes for the Python it runs under."""
