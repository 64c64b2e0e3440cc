//! stub
mod slots;
pub use slots::*;
