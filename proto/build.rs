//! Generates the services and messages from `proto/*.proto` without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/node.proto", "proto/raft.proto", "proto/state.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
