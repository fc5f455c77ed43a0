//! Against the allocators of the distribution, and against files that are built like others.

use super::*;
use crate::target::inspect::FoundFunction;

/// Where Debian has its libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn library(name: &str, package: &str) -> PathBuf {
    let path = Path::new(LIBRARIES).join(name);
    assert!(path.exists(), "{} is missing: install {package} (`cargo xtask setup`)", path.display());
    path
}

fn look(path: &Path) -> Inspected {
    inspect(&fs::File::open(path).unwrap(), path.to_str().unwrap(), 0, false).unwrap()
}

fn one<'a>(inspected: &'a Inspected, symbol: &str) -> &'a FoundFunction {
    let mut named = inspected.functions.iter().filter(|found| found.symbol.name == symbol);
    named.next().unwrap_or_else(|| panic!("{symbol} in {:?}", inspected.functions))
}

/// Checks that each `ret` of an operator new is one, and gives how many there are in and outside of it.
fn rets(path: &Path, found: &FoundFunction) -> (usize, usize) {
    let bytes = fs::read(path).unwrap();
    let offsets = found.ret_offsets.as_ref().unwrap();
    for offset in offsets {
        assert_eq!(bytes[*offset as usize], 0xc3, "{} at {offset:#x}", found.symbol.name);
    }
    let own = found.file_offset..found.file_offset + found.symbol.size;
    let inside = offsets.iter().filter(|offset| own.contains(offset)).count();
    (inside, offsets.len() - inside)
}

fn preloaded(library: &Path) -> Target {
    let directory = TempDir::new().unwrap();
    let program = build(directory.path(), "program", PROGRAM, &["-ldl"]);
    let running = Running::start(Command::new(&program).env("LD_PRELOAD", library));
    Target::discover(running.process(), InlinedPolicy::LeaveOut).unwrap()
}

fn sorted(names: &[String]) -> Vec<&str> {
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    names.into_iter().collect()
}

fn symbols_of(target: &Target, function: Function) -> BTreeSet<&str> {
    let sites = target.sites.iter().filter(|site| site.function == function);
    sites.map(|site| site.symbol.as_str()).collect()
}

#[test]
fn operators_of_jemalloc_are_probed_where_they_do_not_end_in_malloc() {
    let path = library("libjemalloc.so.2", "libjemalloc2");
    let inspected = look(&path);
    assert_eq!(inspected.allocators, ["jemalloc"]);
    // The fast path ends in itself; the slow one, and the one that asks the new handler, are apart.
    let (inside, outside) = rets(&path, one(&inspected, "_Znwm"));
    assert!(inside == 1 && outside >= 2, "{inside} {outside}");
    let target = preloaded(&path);
    assert_eq!(sorted(&target.allocators), ["glibc", "jemalloc"]);
    assert_eq!(symbols_of(&target, Function::OperatorNew), ["_Znwm", "_ZnwmRKSt9nothrow_t"].into());
    let sized = ["_ZdaPvm", "_ZdaPvmSt11align_val_t", "_ZdlPvm", "_ZdlPvmSt11align_val_t"];
    assert_eq!(symbols_of(&target, Function::OperatorDelete), sized.into());
    for own in
        [Function::Mallocx, Function::Rallocx, Function::Xallocx, Function::Dallocx, Function::Sdallocx]
    {
        assert_eq!(symbols_of(&target, own), [own.symbol()].into());
    }
    assert_eq!(symbols_of(&target, Function::CxaThrow), ["__cxa_throw"].into());
    assert!(target.sites.iter().all(|site| {
        site.ret_offsets.is_empty() != (site.function.ending() == tracer_common::probe::Ending::AtRet)
    }));
    assert!(target.missing.iter().all(|(function, _)| *function < Function::Mallocx), "{:?}", target.missing);
}

#[test]
fn operators_of_tcmalloc_are_probed() {
    let path = library("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4");
    let inspected = look(&path);
    assert_eq!(inspected.allocators, ["tcmalloc"]);
    for symbol in ["_Znwm", "_ZnamSt11align_val_t", "_ZnwmRKSt9nothrow_t"] {
        let (inside, outside) = rets(&path, one(&inspected, symbol));
        assert!(inside >= 1 && outside >= 2, "{symbol}: {inside} {outside}");
    }
    let target = preloaded(&path);
    assert_eq!(sorted(&target.allocators), ["glibc", "tcmalloc"]);
    let news = symbols_of(&target, Function::OperatorNew);
    assert_eq!(news.len(), 4, "plain, nothrow, aligned, both: {news:?}");
    // Its sbrk calls glibc's.
    let [sbrk] = &target.sites.iter().filter(|s| s.function == Function::Sbrk).collect::<Vec<_>>()[..] else {
        panic!("{:?}", symbols_of(&target, Function::Sbrk))
    };
    let module = &target.mappings.modules()[sbrk.module as usize].module;
    assert!(module.path.ends_with("libc.so.6"), "{module:?}");
    // `operator delete(void *)` is the same code as free.
    let free = |site: &&ProbeSite| site.symbol == "free" && site.also.contains(&Function::OperatorDelete);
    assert_eq!(target.sites.iter().filter(free).count(), 1);
}

#[test]
fn operators_of_mimalloc_are_probed_where_they_do_not_end_in_malloc() {
    let path = library("libmimalloc.so.2.0", "libmimalloc2.0");
    let inspected = look(&path);
    assert_eq!(inspected.allocators, ["mimalloc"]);
    let (inside, outside) = rets(&path, one(&inspected, "_Znwm"));
    assert!(inside == 1 && outside == 2, "{inside} {outside}");
    // A jump to mi_new_nothrow through the linkage table.
    let seen_by = one(&inspected, "_ZnwmRKSt9nothrow_t").seen_by.unwrap();
    assert_eq!(seen_by.vaddr, Some(one(&inspected, "mi_new_nothrow").symbol.vaddr));
    let target = preloaded(&path);
    assert_eq!(sorted(&target.allocators), ["glibc", "mimalloc"]);
    assert_eq!(symbols_of(&target, Function::OperatorNew), ["_Znwm", "mi_new_nothrow"].into());
    assert!(symbols_of(&target, Function::OperatorDelete).is_empty(), "all are mi_free");
    let posix = symbols_of(&target, Function::PosixMemalign);
    assert_eq!(posix, ["mi_posix_memalign", "posix_memalign"].into(), "mimalloc's and glibc's");
}

/// A jemalloc with a prefix, as far as names tell.
const PREFIXED: &str = r#"
#include <stddef.h>
static char heap[64];
#define NAME(name) void *name(void *a, size_t b, int c) { (void)a, (void)c; return heap + b; }
NAME(zz_mallocx) NAME(zz_rallocx) NAME(zz_sdallocx) NAME(zz_malloc) NAME(zz_free) NAME(zz_nallocx)
NAME(free_sized) NAME(shown)
const char *zz_malloc_conf;
"#;

#[test]
fn a_prefixed_allocator_is_found_whether_its_functions_are_exported_or_not() {
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("exports");
    fs::write(&script, "{ global: shown; local: *; };").unwrap();
    let hide = format!("-Wl,--version-script={}", script.display());
    let found = |name: &str, source: &str, options: &[&str]| {
        let options: Vec<&str> = ["-shared", "-fPIC"].into_iter().chain(options.iter().copied()).collect();
        let inspected = look(&build(directory.path(), name, source, &options));
        let functions = inspected.functions.iter();
        let functions: BTreeSet<_> = functions.map(|f| (f.function, f.symbol.name.clone())).collect();
        (functions, inspected.allocators)
    };
    let prefixed = [
        (Function::Malloc, "zz_malloc".to_owned()),
        (Function::Free, "zz_free".to_owned()),
        (Function::Mallocx, "zz_mallocx".to_owned()),
        (Function::Rallocx, "zz_rallocx".to_owned()),
        (Function::Sdallocx, "zz_sdallocx".to_owned()),
    ];
    let mut all = BTreeSet::from(prefixed.clone());
    all.insert((Function::FreeSized, "free_sized".into()));
    assert_eq!(found("shown.so", PREFIXED, &[]), (all.clone(), vec!["jemalloc"]));
    assert_eq!(found("hidden.so", PREFIXED, &[&hide]), (all, vec!["jemalloc"]));
    // A function of one source file that bears a plain name may be anything.
    let local = PREFIXED.replace("#define NAME(name) ", "#define NAME(name) __attribute__((used)) static ");
    assert_eq!(found("local.so", &local, &[]), (prefixed.into(), vec!["jemalloc"]));
    assert_eq!(found("stripped.so", PREFIXED, &[&hide, "-s"]), (BTreeSet::new(), vec![]));
}

/// An allocator whose operators end in all the ways that matter. `malloc` is not called by them.
const OPERATORS: &str = r#"
#include <stddef.h>
static char heap[4096];
#define APART __attribute__((noipa))
void *malloc(size_t size) { return heap + size; }
APART static void *last(size_t size) { return size > 7 ? heap : NULL; }
APART static void *slow(size_t size) { heap[1] = 1; return last(size * 3); }
void *_Znwm(size_t size) { if (size > 9) return slow(size + 1); return heap + 1; }
void *_Znam(size_t size) { return _Znwm(size); }
void *_ZnwmRKSt9nothrow_t(size_t size, void *n) { void *got = malloc(size); return n ? got : heap; }
void *(*handler)(size_t);
void *_ZnwmSt11align_val_t(size_t size, size_t align) { return align > 8 ? handler(size) : heap + 1; }
void *elsewhere(size_t);
void *_ZnamSt11align_val_t(size_t size, size_t align) { return align > 8 ? elsewhere(size) : heap + 1; }
"#;

#[test]
fn an_operator_new_is_refused_where_its_end_cannot_be_told() {
    let directory = TempDir::new().unwrap();
    // Tail calls, and calls through the linkage table even within the library.
    let options = ["-shared", "-fPIC", "-O2", "-fno-builtin"];
    let path = build(directory.path(), "operators.so", OPERATORS, &options);
    let inspected = look(&path);
    assert_eq!(rets(&path, one(&inspected, "_Znwm")), (1, 1), "in itself, and two jumps away");
    assert_eq!(one(&inspected, "_Znam").seen_by.unwrap().function, Function::OperatorNew);
    assert_eq!(one(&inspected, "_ZnwmRKSt9nothrow_t").seen_by.unwrap().function, Function::Malloc);
    let refused = |symbol| one(&inspected, symbol).ret_offsets.clone().unwrap_err();
    assert!(refused("_ZnwmSt11align_val_t").contains("not known before it runs"));
    assert!(refused("_ZnamSt11align_val_t").contains("jumps to elsewhere of another file"));

    let file = [Candidate { module: 0, path: "/operators.so", inspected: &inspected }];
    let chosen = choose(&file, None, InlinedPolicy::LeaveOut.into());
    let news: Vec<_> = chosen.sites.iter().filter(|site| site.function == Function::OperatorNew).collect();
    let [site] = news[..] else { panic!("{news:?}") };
    assert_eq!((site.symbol.as_str(), site.ret_offsets.len()), ("_Znwm", 2));
    let missing = chosen.missing.iter().filter(|(function, _)| *function == Function::OperatorNew);
    let reasons: Vec<&str> = missing.map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons.iter().all(|reason| reason.contains("St11align_val_t in /operators.so: ")),
        "{reasons:?}"
    );
}

#[test]
fn a_stripped_file_in_which_an_allocator_speaks_is_named() {
    let directory = TempDir::new().unwrap();
    let source = "const char *text(void) { return \"<jemalloc>: Error in %s\\n\"; }";
    let path = build(directory.path(), "x.so", source, &["-shared", "-fPIC", "-s"]);
    let inspected = look(&path);
    assert_eq!(inspected.unnamed_allocator, Some("jemalloc"));
    let chosen = choose(
        &[Candidate { module: 0, path: "/x.so", inspected: &inspected }],
        None,
        InlinedPolicy::LeaveOut.into(),
    );
    assert!(chosen.missing.iter().any(|(function, reason)| {
        *function == Function::Malloc && reason.contains("/x.so has jemalloc in it and is stripped")
    }));
    assert!(chosen.allocators.is_empty());
    // One that is exported is seen, as far as it is.
    let source = format!("{source} void *malloc(unsigned long size) {{ return (char *)text() + size; }}");
    let inspected = look(&build(directory.path(), "z.so", &source, &["-shared", "-fPIC", "-s"]));
    let file = Candidate { module: 0, path: "/z.so", inspected: &inspected };
    let chosen = choose(&[file], None, InlinedPolicy::LeaveOut.into());
    assert_eq!(chosen.allocators, ["jemalloc"]);
    assert_eq!(chosen.sites.len(), 1);
    assert!(chosen.missing.iter().any(|(function, reason)| {
        *function == Function::Mallocx && reason.contains("its exported functions only are seen")
    }));
    let path = build(directory.path(), "y.so", &source, &["-shared", "-fPIC"]);
    assert_eq!(look(&path).unnamed_allocator, None, "its symbols would tell");
}

/// C++ in one file with its C library: libstdc++'s operators call malloc.
#[test]
fn operators_of_the_standard_library_are_left_out() {
    let directory = TempDir::new().unwrap();
    let options = ["-xc++", "-", "-static", "-xc++", "-Wno-all"];
    let source = format!(
        "#include <new>\n{PROGRAM}\nvoid *(*keep[])(size_t) = {{::operator new, ::operator new[]}};\n\
                          void (*kill[])(void *) = {{::operator delete, ::operator delete[]}};"
    );
    let program = directory.path().join("program");
    let mut compiler = Command::new("c++")
        .args(["-O1", "-o"])
        .arg(&program)
        .args(options)
        .args(["-fpermissive", "-w"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "c++ -static failed: install libc6-dev and g++");
    let running = Running::start(&mut Command::new(&program));
    let target = running.observed();
    assert_eq!(sorted(&target.allocators), ["glibc"]);
    assert_eq!(
        one(target.inspected[0].as_ref().unwrap(), "_Znwm").seen_by.unwrap().function,
        Function::Malloc
    );
    for function in [Function::OperatorNew, Function::OperatorDelete, Function::CxaThrow] {
        assert!(symbols_of(&target, function).is_empty(), "{function:?}");
        assert!(!target.missing.iter().any(|(missing, _)| *missing == function), "{:?}", target.missing);
    }
}

#[test]
fn the_program_break_is_where_glibc_keeps_it() {
    use std::os::unix::fs::FileExt;
    let directory = TempDir::new().unwrap();
    for (name, options) in [
        ("dynamic", &["-ldl"][..]),
        ("fixed", &["-no-pie", "-ldl"]),
        ("static", &["-static", "-w"]),
        ("static-pie", &["-static-pie", "-w"]),
    ] {
        let program = build(directory.path(), name, PROGRAM, options);
        let mut running = Running::start(&mut Command::new(&program));
        let target = running.observed();
        for function in [Function::Sbrk, Function::Brk] {
            assert_eq!(symbols_of(&target, function), [function.symbol()].into(), "{name}");
        }
        let answer = running.ask("break");
        let memory = fs::File::open(format!("/proc/{}/mem", running.child.id())).unwrap();
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, target.current_break_addr().unwrap()).unwrap();
        assert_eq!(format!("{:#x}", u64::from_le_bytes(word)), answer, "{name}");
    }
}

#[test]
fn the_program_break_is_not_traced_in_musl() {
    let directory = TempDir::new().unwrap();
    for (name, options) in [("dynamic", &["-w"][..]), ("static", &["-static", "-w"])] {
        let program = directory.path().join(name);
        let mut compiler = Command::new("musl-gcc")
            .args(["-O1", "-x", "c", "-", "-o"])
            .arg(&program)
            .args(options)
            .stdin(Stdio::piped())
            .spawn()
            .expect("musl-gcc is missing: install musl-tools");
        compiler.stdin.take().unwrap().write_all(PROGRAM.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success());
        let running = Running::start(&mut Command::new(&program));
        let target = running.observed();
        assert_eq!(target.allocators, ["musl"], "{name}");
        assert_eq!(target.current_break_addr(), None, "{name}");
        assert!(symbols_of(&target, Function::Sbrk).is_empty(), "{name}");
        assert!(target.sites.iter().any(|site| site.function == Function::Malloc), "{name}");
    }
}
