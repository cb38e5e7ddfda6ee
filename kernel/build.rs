//! Tells the linker where the kernel goes, and the compiler where the shell's image is.

use std::env;
use std::path::Path;

/// Names another shell to take into the kernel.
const OVERRIDE: &str = "LGUEST_SHELL_IMAGE";

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let here = Path::new(&here);
    let script = here.join("kernel.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());

    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let image = env::var_os(OVERRIDE).map_or_else(|| here.join("../build/shell.elf"), Into::into);
    println!("cargo::rerun-if-changed={}", image.display());
    match image.canonicalize() {
        Ok(image) => println!("cargo::rustc-env=LGUEST_SHELL={}", image.display()),
        Err(error) => println!(
            "cargo::error=the shell's image isn't there ({}: {error}); setup/build-guest.sh builds both",
            image.display()
        ),
    }
}
