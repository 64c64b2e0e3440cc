//! The messages and clients of `proto/evloopd/v1`, generated at build time.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

tonic::include_proto!("evloopd.v1");

/// The messages of `proto/evloopd/state/v1`: what a daemon leaves for its next life.
pub mod state {
    include!(concat!(env!("OUT_DIR"), "/state/evloopd.state.v1.rs"));
}

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evloopd.bin"));

static DESCRIPTORS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default());

/// The compiled `.proto` files, for reflection in this process.
pub fn descriptors() -> &'static DescriptorPool {
    &DESCRIPTORS
}

impl From<crate::config::Survives> for Survives {
    fn from(level: crate::config::Survives) -> Self {
        match level {
            crate::config::Survives::None => Self::Nothing,
            crate::config::Survives::Crash => Self::Crash,
        }
    }
}

impl From<crate::driver::Nonblocking> for state::KeptMode {
    fn from(mode: crate::driver::Nonblocking) -> Self {
        use crate::driver::Nonblocking as Mode;
        match mode {
            Mode::Socket => Self::Socket,
            Mode::Pipe => Self::Pipe,
            Mode::Listener => Self::Listener,
            Mode::Own | Mode::Terminal | Mode::ReadinessOnly | Mode::File => Self::Unspecified,
        }
    }
}

impl From<state::KeptMode> for crate::driver::Nonblocking {
    fn from(mode: state::KeptMode) -> Self {
        match mode {
            state::KeptMode::Unspecified => Self::Own,
            state::KeptMode::Socket => Self::Socket,
            state::KeptMode::Pipe => Self::Pipe,
            state::KeptMode::Listener => Self::Listener,
        }
    }
}
