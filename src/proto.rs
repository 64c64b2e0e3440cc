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

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evloopd.bin"));

static DESCRIPTORS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default());

/// The compiled `.proto` files, for reflection in this process.
pub fn descriptors() -> &'static DescriptorPool {
    &DESCRIPTORS
}
