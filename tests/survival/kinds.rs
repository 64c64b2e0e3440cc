//! Watches of other kinds, which go on in the next life.

mod datagrams;
mod files;
mod paths;
mod pids;
