//! The program of `targets/shapes`, whose stacks have every shape, and its libraries.

use super::program::{build_once, run_tool, source_path};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its C sources.
const SOURCES: [&str; 5] = ["main", "frames", "callbacks", "interrupts", "stepping"];

fn source(file: &str) -> PathBuf {
    source_path(&format!("shapes/{file}"))
}

fn compiler(name: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(["-O2", "-fomit-frame-pointer", "-Wall", "-Wextra", "-pthread"]).args(flags);
    command
}

/// `rust.rs`, stripped.
pub fn rust_shapes() -> PathBuf {
    build_once("rust-shapes".into(), |path| {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "-O", "-C", "strip=symbols", "-C", "force-frame-pointers=no", "-o"]);
        run_tool(rustc.arg(path).arg(source("rust.rs")));
    })
}

/// `static.c` with its C library in it: with its symbols, since nothing else tells where malloc is.
pub fn static_shapes(compiler_name: &str, flags: &[&str]) -> PathBuf {
    build_once(format!("static-{compiler_name}{}", flags.concat()), |path| {
        let mut cc = compiler(compiler_name, flags);
        run_tool(cc.args(["-std=gnu11", "-o"]).arg(path).arg(source("static.c")).arg(source("frames.c")));
    })
}

/// `early.cc` or `standard.c`, stripped.
pub fn shapes_program(name: &str) -> PathBuf {
    shapes("plain", &[]).with_file_name(name)
}

/// Where a function of the program begins in its file.
pub fn function_offset(program: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(names_of(program)).output().expect("run nm");
    let lines = String::from_utf8(output.stdout).expect("nm writes text");
    let line = lines
        .lines()
        .find(|line| line.ends_with(&format!(" t {name}")) || line.ends_with(&format!(" T {name}")));
    let line = line.unwrap_or_else(|| panic!("{} has no function {name}", program.display()));
    // In this program the code lies at the same place in the file and in memory.
    u64::from_str_radix(&line[..16], 16).expect("an address")
}

/// The program, stripped, without immediate binding. `label` tells builds with different `flags` apart. One of
/// which the C part has `-g` is not stripped: its unwind information may be what only debuggers need.
pub fn shapes(label: &str, flags: &[&str]) -> PathBuf {
    let directory = build_once(format!("shapes-{label}"), |directory| {
        std::fs::create_dir(directory).expect("make a directory");
        build(directory, flags);
    });
    directory.join("shapes")
}

/// The same program with its symbols, for the messages of tests.
pub fn names_of(program: &Path) -> PathBuf {
    program.with_extension("named")
}

/// Builds it and all that belongs to it.
pub fn build(directory: &Path, flags: &[&str]) {
    let origin = "-Wl,-rpath,$ORIGIN";
    let keeps_symbols = flags.contains(&"-g");
    let strip: &[&str] = if keeps_symbols { &[] } else { &["-s"] };
    let library = directory.join("libshapes.so");
    let mut cc = compiler("cc", flags);
    cc.args(strip).args(["-shared", "-fPIC", "-Wl,-soname,libshapes.so", "-o"]).arg(&library);
    run_tool(cc.arg(source("library.c")).arg(source("library_code.S")));

    let mut cc = compiler("cc", flags);
    cc.args(strip).args(["-shared", "-fPIC", "-Wl,-z,lazy", origin, "-o"]);
    run_tool(cc.arg(directory.join("libplugin.so")).arg(source("plugin.c")).arg(&library));

    let mut objects = Vec::new();
    let mut object = |mut command: Command, file: &str| {
        let path = directory.join(file).with_extension("o");
        run_tool(command.arg("-c").arg(source(file)).arg("-o").arg(&path));
        objects.push(path);
    };
    for name in SOURCES {
        let mut cc = compiler("cc", flags);
        cc.args(["-std=gnu11", "-I/usr/include/libxml2"]);
        object(cc, &format!("{name}.c"));
    }
    object(compiler("cc", &[]), "code.S");
    let mut cxx = compiler("c++", flags);
    // Exceptions need it.
    cxx.args(["-std=c++17", "-fasynchronous-unwind-tables"]);
    object(cxx, "cxx.cc");

    let mut cxx = compiler("c++", flags);
    cxx.args(["-std=c++17", "-s", origin, "-o"]).arg(directory.join("early"));
    run_tool(cxx.arg(source("early.cc")).arg(&library));
    let mut cc = compiler("cc", flags);
    cc.args(["-std=gnu11", "-s", "-o"]).arg(directory.join("standard"));
    run_tool(cc.arg(source("standard.c")).args(["-lsqlite3", "-lz"]));

    let program = directory.join("shapes");
    let named = names_of(&program);
    let mut link = Command::new("c++");
    link.args(["-pthread", "-Wl,-z,lazy", origin, "-o"]).arg(&named).args(&objects);
    run_tool(link.arg(&library).args(["-lsqlite3", "-lxml2", "-lz"]));
    if keeps_symbols {
        std::fs::copy(&named, &program).expect("copy a program");
    } else {
        run_tool(Command::new("strip").arg("-o").arg(&program).arg(&named));
    }
}
