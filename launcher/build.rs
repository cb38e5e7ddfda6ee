//! Finds the guest's kernel that goes into the library, and says what to do when there is none.

use std::env;
use std::path::{Path, PathBuf};

/// Names another image to bundle; useful to package a kernel of one's own.
const OVERRIDE: &str = "LGUEST_KERNEL_IMAGE";

fn main() {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let image = match env::var_os(OVERRIDE) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/kernel.elf"),
    };
    println!("cargo::rerun-if-changed={}", image.display());
    match image.canonicalize() {
        Ok(image) => println!("cargo::rustc-env=LGUEST_BUNDLED_KERNEL={}", image.display()),
        Err(error) => println!(
            "cargo::error=the guest's kernel image isn't there ({image}: {error}). Run `make` in the top folder: it builds the kernel first, then everything else. To bundle another kernel, name it in {OVERRIDE}.",
            image = image.display(),
        ),
    }
}
