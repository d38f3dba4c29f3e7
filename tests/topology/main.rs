//! Whole processes on the user path, nodes as network namespaces.
