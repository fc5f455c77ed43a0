//! Targets whose files are not where their paths say: in another mount namespace, or replaced since.

use memtrace_tests::harness::program::{library, open_directory};
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Target, as_root, copy_of, program};
use std::fs;
use std::process::Command;

/// Makes a root directory on a file system that only this namespace has, and runs the program in it.
const CONTAINER: &str = r#"
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/service"
cp "$2" "$1/service/server"
for library in $(ldd "$2" | grep -o '/[^ ]*'); do
    cp -L --parents "$library" "$1"
done
exec chroot "$1" /service/server
"#;

fn check_sizes(report: &Report) {
    report.expect_nothing_lost();
    for (function, bytes) in [("leak_small", 1000), ("leak_medium", 100_000), ("leak_mapping", 81_920)] {
        let totals = report.totals_of(function);
        assert_eq!(totals.outstanding_bytes, bytes, "{function}, of\n{}", report.outstanding());
        for row in report.rows_with(function) {
            assert!(row.called_by(function) && row.has("run_plan"), "{:?}", row.names());
        }
    }
}

fn trace(target: &mut Target) -> Report {
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    target.go();
    session.stop().report()
}

#[test]
fn a_process_in_another_mount_namespace_is_traced_and_named() {
    let _root = as_root();
    let root = open_directory();
    let mut target = Target::start_command(
        Command::new("unshare")
            .args(["--mount", "sh", "-c", CONTAINER, "container"])
            .arg(root.path())
            .arg(program("sizes", Language::C, Frames::Omitted)),
    );
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "the files are invisible from here");
    let report = trace(&mut target);
    check_sizes(&report);
    let frame = &report.rows_with("leak_small").next().unwrap().frames[0];
    let module = frame.module.as_deref().unwrap();
    assert!(module.ends_with("/service/server"), "the path as the target sees it: {module}");
    assert!(frame.file.as_deref().is_some_and(|file| file.ends_with("sizes.c")), "{frame:?}");
    target.quit();
}

#[test]
fn a_file_replaced_since_it_was_mapped_gives_the_old_names() {
    let _root = as_root();
    let directory = open_directory();
    let path = directory.path().join("server");
    copy_of(&program("sizes", Language::C, Frames::Omitted), &path);
    let mut target = Target::start(&path, &[]);
    // An upgrade puts another program in its place.
    let upgrade = directory.path().join("server.new");
    copy_of(&program("edge", Language::C, Frames::Omitted), &upgrade);
    fs::rename(&upgrade, &path).unwrap();

    let report = trace(&mut target);
    check_sizes(&report);
    for function in ["failed_realloc", "free_null", "realloc_to_zero", "big_blocks"] {
        assert_eq!(report.rows_with(function).count(), 0, "a name of the new file: {function}");
    }
    target.quit();
}

/// The second library's code lies where the first one's was when memtrace attached.
#[test]
fn a_library_in_the_place_of_another_is_named_by_itself() {
    let _root = as_root();
    let plugins = ["leak_in_first", "leak_in_second"].map(|function| library("plugin", function));
    let paths = plugins.each_ref().map(|path| path.to_str().unwrap());
    let mut target = Target::start(&program("host", Language::C, Frames::Omitted), &paths);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    assert_eq!(target.ask("swap"), ["1"], "the loader gave the second library another address");
    target.go();
    let report = session.stop().report();
    target.quit();
    report.expect_nothing_lost();
    assert_eq!(report.rows_with("leak_in_first").count(), 0, "{}", report.outstanding());
    let second = report.totals_of("leak_in_second");
    assert_eq!(
        (second.outstanding_count, second.outstanding_bytes),
        (10, 30_000),
        "{}",
        report.outstanding()
    );
}
