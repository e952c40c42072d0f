//! How the program is linked where it is built for use: without the tables that only an unwinder reads.

use std::env;
use std::path::Path;

/// Leaves out the tables by which a stack is unwound: a tenth of the program, and a panic aborts it (see
/// `src/sys/unwind.rs`). The compiler can't be told so, since the standard library comes compiled.
const WITHOUT_UNWINDING: &str = "\
SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table) *(.gcc_except_table.*) } }
INSERT AFTER .text;
";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|it| it == value);
    // Another linker than the usual ones may not read scripts.
    let picks_linker =
        env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("-fuse-ld"));
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu") && !picks_linker {
        let out = env::var_os("OUT_DIR").expect("cargo sets it");
        let script = Path::new(&out).join("without-unwinding.ld");
        std::fs::write(&script, WITHOUT_UNWINDING)?;
        println!("cargo::rustc-link-arg-bin=tentpole=-Wl,--no-eh-frame-hdr");
        println!(
            "cargo::rustc-link-arg-bin=tentpole=-Wl,-T,{}",
            script.display()
        );
    }
    Ok(())
}
