pub struct Compiler;
pub fn root() -> std::path::PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}
