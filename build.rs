//! Compiles `proto/` without an installed `protoc`.
//!
//! Twice, on purpose: once all messages and clients (`crate::proto`), and once the
//! server stubs, whose streaming answers are types that write journal bytes as they
//! are (`crate::rpc::wire`) and encode to the same messages.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;
use protox::prost_reflect::prost_types::{DescriptorProto, EnumDescriptorProto};

const STREAMED: [(&str, &str); 4] = [
    ("SubscribeResponse", "crate::rpc::wire::SubscribeResponse"),
    ("AttachResponse", "crate::rpc::wire::AttachResponse"),
    ("RunResponse", "crate::rpc::wire::RunResponse"),
    ("PollResponse", "crate::rpc::wire::PollResponse"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let root = Path::new("proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("evloopd/v1"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo::rerun-if-changed=proto");

    let descriptors = protox::compile(&files, [root])?;
    std::fs::write(out.join("evloopd.bin"), descriptors.encode_to_vec())?;

    // A message's name leads to its descriptor, and that to its JSON.
    let mut names = tonic_prost_build::Config::new();
    names.enable_type_names();
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".evloopd.v1")
        .btree_map(".evloopd.v1")
        .compile_fds_with_config(descriptors.clone(), names)?;

    let server = out.join("server");
    std::fs::create_dir_all(&server)?;
    let mut config = tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::rpc::wire::Codec")
        .out_dir(&server);
    for file in &descriptors.file {
        if file.package() != "evloopd.v1" {
            continue;
        }
        for name in file.message_type.iter().map(DescriptorProto::name) {
            let ours = STREAMED.iter().find(|(streamed, _)| *streamed == name);
            let path = ours.map_or_else(|| format!("crate::proto::{name}"), |(_, p)| (*p).into());
            config = config.extern_path(format!(".evloopd.v1.{name}"), path);
        }
        for name in file.enum_type.iter().map(EnumDescriptorProto::name) {
            config = config.extern_path(
                format!(".evloopd.v1.{name}"),
                format!("crate::proto::{name}"),
            );
        }
    }
    config.compile_fds(descriptors)?;
    Ok(())
}
