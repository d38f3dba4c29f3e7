//! What cameras and publishers do.
