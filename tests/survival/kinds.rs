//! Watches of other kinds, which go on in the next life.

mod paths;
mod pids;
