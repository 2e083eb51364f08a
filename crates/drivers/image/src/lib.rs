//! Machine images: building, importing and pulling.
