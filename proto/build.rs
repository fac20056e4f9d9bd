//! Compiles `pinfold/**/*.proto` without protoc, and fails on a service that does not say who may call it.

use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use protox::prost_reflect::{DescriptorPool, Value};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    println!("cargo:rerun-if-changed={}", root.join("pinfold").display());
    let mut files = Vec::new();
    collect(&root.join("pinfold"), &mut files)?;
    files.sort();

    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    let encoded = compiler.encode_file_descriptor_set();
    let audiences = check_audiences(&compiler.descriptor_pool())?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), &encoded)?;
    std::fs::write(out.join("audiences.rs"), audiences)?;
    let set = FileDescriptorSet::decode(encoded.as_slice())?;
    tonic_prost_build::configure()
        .include_file("pinfold.rs")
        .bytes(".pinfold.connector.v1.Block.data")
        .bytes(".pinfold.connector.v1.BlockReply.data")
        .bytes(".pinfold.api.v1.AddRequest.data")
        .bytes(".pinfold.consensus.v1.AppendRequest.entries")
        .bytes(".pinfold.consensus.v1.ListReply.pins")
        .bytes(".pinfold.consensus.v1.SnapshotChunk.data")
        .compile_fds(set)?;
    Ok(())
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            into.push(path);
        }
    }
    Ok(())
}

/// The audience of each service as a table in Rust; an error names a service that declares none.
fn check_audiences(pool: &DescriptorPool) -> Result<String, Box<dyn std::error::Error>> {
    let extension =
        pool.get_extension_by_name("pinfold.options.v1.audience").ok_or("the audience option is not defined")?;
    let mut table = String::from("&[\n");
    for service in pool.services() {
        let options = service.options();
        let audience = match options.get_extension(&extension).as_ref() {
            Value::EnumNumber(number) => *number,
            other => return Err(format!("{}: audience is {other:?}", service.full_name()).into()),
        };
        let name = match audience {
            1 => "Own",
            2 => "Member",
            3 => "Raft",
            4 => "Joining",
            5 => "Public",
            _ => return Err(format!("{} declares no audience (protocols.md 1)", service.full_name()).into()),
        };
        table.push_str(&format!("    (\"{}\", crate::Audience::{name}),\n", service.full_name()));
    }
    table.push(']');
    Ok(table)
}
