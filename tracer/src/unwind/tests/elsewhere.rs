//! Unwind information that is not where the code is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::image::Image;
use super::super::{Table, compile, compiler, elsewhere};
use super::build;

/// A function longer than what is worth a search, and a short one.
const SOURCE: &str = "
    .cfi_sections .debug_frame
long:
    .cfi_startproc
    sub     $24, %rsp
    .cfi_def_cfa_offset 32
    .fill   2000, 1, 0x90
    .cfi_endproc
short:
    .cfi_startproc
    ret
    .cfi_endproc
";

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// What is made of the file at `path`, with what is found elsewhere.
fn found(path: &Path, debug_dirs: &[PathBuf]) -> Table {
    let elf = fs::read(path).unwrap();
    let file = File::open(path).unwrap();
    compiler::compile(&Image::parse(&elf).unwrap(), || elsewhere::debug_frame(&file, debug_dirs)).unwrap()
}

struct Stripped {
    dir: tempfile::TempDir,
    whole: Table,
}

impl Stripped {
    fn new() -> Self {
        let flags = ["-shared", "-nostdlib", "-Wl,--build-id=0xabcdef0123456789"];
        let (dir, built) = build("split.s", SOURCE, &flags);
        let whole = compile(&fs::read(&built).unwrap(), None).unwrap();
        let this = Self { dir, whole };
        run("objcopy", &["--only-keep-debug".as_ref(), &built, &this.path("debug")]);
        run("strip", &["-o".as_ref(), &this.path("stripped"), &built]);
        assert_ne!(found(&this.path("stripped"), &[]), this.whole);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn a_debug_file_is_found_by_build_id() {
    let stripped = Stripped::new();
    let dir = stripped.path("debug-files");
    let by_id = dir.join(".build-id/ab");
    fs::create_dir_all(&by_id).unwrap();
    let debug = by_id.join("cdef0123456789.debug");
    fs::copy(stripped.path("debug"), &debug).unwrap();
    assert_eq!(found(&stripped.path("stripped"), std::slice::from_ref(&dir)), stripped.whole);
    // One with another build id is not believed.
    let mut bytes = fs::read(&debug).unwrap();
    let id = [0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89];
    let at = bytes.windows(8).position(|window| window == id).unwrap();
    bytes[at + 7] ^= 1;
    fs::write(&debug, bytes).unwrap();
    assert_ne!(found(&stripped.path("stripped"), &[dir]), stripped.whole);
}

#[test]
fn a_packed_file_is_unpacked() {
    let stripped = Stripped::new();
    run("xz", &[&stripped.path("debug")]);
    let packed = stripped.path("packed");
    let section = format!(".gnu_debugdata={}", stripped.path("debug.xz").display());
    run("objcopy", &["--add-section".as_ref(), section.as_ref(), &stripped.path("stripped"), &packed]);
    assert_eq!(found(&packed, &[]), stripped.whole);
}

#[test]
fn what_describes_its_code_is_not_searched_for() {
    let source = SOURCE.replace(".debug_frame", ".eh_frame");
    let (_dir, built) = build("whole.s", &source, &["-shared", "-nostdlib"]);
    let elf = fs::read(built).unwrap();
    let search = || panic!("searched");
    compiler::compile(&Image::parse(&elf).unwrap(), search).unwrap();
}
