//! Generates the gRPC code. Needs `protoc`: `make deps` installs it.

fn main() {
    println!("cargo:rerun-if-changed=schema/keeper.proto");
    if let Err(error) = tonic_prost_build::compile_protos("schema/keeper.proto") {
        eprintln!(
            "gRPC code cannot be generated: {error}\nrun `make deps` first: it installs protoc"
        );
        std::process::abort();
    }
}
