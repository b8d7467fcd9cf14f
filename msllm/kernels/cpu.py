raise ImportError("no build of the C++ kernels")
