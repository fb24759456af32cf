//! Generates the gRPC code. Needs `protoc`: `make deps` installs it.

fn main() {
    println!("cargo:rerun-if-changed=schema");
    let compile = tonic_prost_build::configure()
        .compile_protos(&["schema/keeper.proto", "schema/topology.proto"], &["schema"]);
    if let Err(error) = compile {
        eprintln!(
            "gRPC code cannot be generated: {error}\nrun `make deps` first: it installs protoc"
        );
        std::process::abort();
    }
}
