//! Boots the bundled guest with the library: the command `lguest` in ten lines.

use lguest::{Console, MemorySize, Vm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ending = Vm::builder()
        .memory(MemorySize::from_mib(32)?)
        .console(Console::stdio()?)
        .build()?
        .run()?;
    println!("The guest ended: {ending:?}");
    Ok(())
}
