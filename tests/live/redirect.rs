//! `--redirect-allocators`, which writes to the target: every call is seen, and whatever happens to memtrace, the
//! target's tables are as they were a moment later.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use memtrace_tests::harness::deadline::{open_process, slowdown, wait_readable};
use memtrace_tests::harness::pythons::{Installed, of_suite};
use memtrace_tests::harness::report::sum;
use memtrace_tests::harness::{Frames, Language, Memtrace, Report, Session, Target, as_root, program};
use tracer::target::elf::{Elf, SymbolTable};

/// The longest that memtrace may take to write to the tables.
const LIMIT: Duration = Duration::from_secs(60);

/// How soon the tables are restored when memtrace was killed.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);

/// `_PyRuntime.allocators.standard.mem`, from the start of `_PyRuntime`: CPython's DWARF and headers, 3.13 and 3.14.
const fn mem_table(minor: u32) -> u64 {
    match minor {
        13 => 744,
        14 => 920,
        _ => panic!("a version whose layout was looked up"),
    }
}

/// The tables of a process as this test finds them, and its memory.
struct Tables {
    memory: File,
    addr: u64,
    own: Vec<u64>,
}

impl Tables {
    fn of(pid: u32, minor: u32) -> Self {
        let elf = Elf::open(&File::open(format!("/proc/{pid}/exe")).expect("the target runs")).unwrap();
        let exported = elf.symbols(SymbolTable::Exported, |name| name == "_PyRuntime").unwrap();
        // The first mapping is that of the executable's first bytes, wherever it was put.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let start = u64::from_str_radix(maps.split_once('-').unwrap().0, 16).unwrap();
        let bias = start - elf.vaddr(0).expect("the first bytes are mapped");
        Self::at(pid, exported.first().expect("_PyRuntime").vaddr + bias + mem_table(minor))
    }

    /// The two tables that begin at `addr`.
    fn at(pid: u32, addr: u64) -> Self {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("the target's memory");
        let mut tables = Self { memory, addr, own: Vec::new() };
        tables.own = tables.now();
        tables
    }

    /// A context and four functions, twice.
    fn now(&self) -> Vec<u64> {
        let mut bytes = [0; 80];
        self.memory.read_exact_at(&mut bytes, self.addr).expect("the target's tables");
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn are_own(&self) -> bool {
        self.now() == self.own
    }

    /// Whether every function is the same at another address.
    fn are_redirected(&self) -> bool {
        let mut pairs = self.now().into_iter().zip(&self.own).enumerate();
        pairs.all(|(index, (now, own))| now == if index % 5 == 0 { *own } else { own + 4 })
    }

    fn expect_own(&self, when: &str) {
        assert!(self.are_own(), "{when}: {:x?} were {:x?}", self.now(), self.own);
    }

    fn expect_redirected(&self) {
        assert!(self.are_redirected(), "{:x?} were {:x?}", self.now(), self.own);
    }

    /// Waits until they are as they were.
    fn await_own(&self, when: &str) -> Duration {
        let start = Instant::now();
        while !self.are_own() {
            assert!(start.elapsed() < RESTORED_WITHIN * slowdown(), "{when}: {:x?}", self.now());
            std::thread::yield_now();
        }
        start.elapsed()
    }
}

/// A program that allocates, and its tables.
struct Running {
    target: Target,
    tables: Tables,
    pid: String,
    _copy: tempfile::TempDir,
}

impl Running {
    fn start(python: &Installed, variables: &[(&str, &str)]) -> Self {
        let (mut command, copy) = python.command("redirect", "redirect.py");
        let target = Target::start_command(command.envs(variables.iter().copied()));
        let tables = Tables::of(target.pid(), python.minor);
        let pid = target.pid().to_string();
        Self { target, tables, pid, _copy: copy }
    }

    fn memtrace(&self) -> Memtrace {
        let domains = ["--domains", "py-mem,py-object", "--format", "json"];
        Memtrace::new(["-p", &self.pid, "--redirect-allocators"]).args(domains)
    }

    /// Asks for blocks and tells by how many their number has changed.
    fn blocks(&mut self, command: &str) -> i64 {
        self.target.ask_line(command).parse().expect("a number of blocks")
    }
}

fn python(suite: &str, minor: u32) -> Installed {
    let mut pythons = of_suite(suite).into_iter();
    let found = pythons.find(|python| python.minor == minor && !python.name.contains("JIT"));
    found.unwrap_or_else(|| panic!("no Python 3.{minor} of {suite}: run `cargo xtask pythons {suite}`"))
}

/// The ones that are built for CET.
fn pythons() -> [Installed; 3] {
    [python("trixie", 13), python("sid", 13), python("sid", 14)]
}

/// Blocks that were taken, less those given back.
fn gained(report: &Report) -> i64 {
    report.expect_nothing_lost();
    let sums = sum(report.stacks.iter());
    assert_eq!(sums.outstanding_count, report.totals.outstanding_count);
    report.totals.outstanding_count as i64 - report.totals.unmatched_free_count as i64
}

#[track_caller]
fn expect_close(told: i64, truth: i64, what: &str) {
    let share = told as f64 / truth as f64;
    println!("{what}: {told} of {truth}, {:.4} %", 100.0 * share);
    assert!((share - 1.0).abs() <= 0.001, "{what}: {told} of {truth}");
}

#[track_caller]
fn expect_covered(report: &Report) {
    for domain in ["py-mem", "py-object"] {
        let coverage = &report.coverage[domain];
        assert_eq!(coverage["how"], "redirected", "{coverage}");
        for share in ["alloc_share", "free_share"] {
            let share = coverage[share].as_f64().unwrap_or_else(|| panic!("{coverage}"));
            assert!((0.999..=1.0).contains(&share), "{coverage}");
        }
    }
}

#[test]
fn every_block_is_seen_behind_redirected_tables() {
    let _root = as_root();
    for python in pythons() {
        let name = &python.name;
        let mut running = Running::start(&python, &[]);
        let session = running.memtrace().trace();
        running.tables.expect_redirected();
        let truth = running.blocks("make 10000");
        let finished = session.stop();
        running.tables.expect_own(name);
        let report = finished.report();
        expect_close(gained(&report), truth, &format!("{name}: taken"));
        expect_covered(&report);
        assert!(report.notes.iter().any(|note| note.contains("written to")), "{:?}", report.notes);
        assert!(report.stacks.iter().all(|row| row.bytes_are == "requested"), "{name}");
        let by_line = report.totals_of("make").outstanding_count as f64;
        assert!(by_line > 0.99 * truth as f64, "{name}: {by_line} of {truth} in the function that made them");

        let session = running.memtrace().trace();
        running.tables.expect_redirected();
        let truth = running.blocks("drop");
        let report = session.stop().report();
        running.tables.expect_own(name);
        assert!(truth < -100_000, "{truth}");
        expect_close(gained(&report), truth, &format!("{name}: put back"));
        expect_covered(&report);
        running.target.quit();
    }
}

/// The process that memtrace has forked to restore.
fn guardian_of(session: &Session) -> u32 {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", session.pid())).unwrap();
    let is_guardian = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "memtrace-guard")
    };
    let mut pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.find(is_guardian).expect("a guardian")
}

#[test]
fn killing_memtrace_restores_the_tables() {
    let _root = as_root();
    let python = python("trixie", 13);
    let mut running = Running::start(&python, &[]);

    // As soon as it is ready, while it has much to do, and where its probes take the kernel seconds to take away.
    let many_links = Memtrace::new(["-p", &running.pid, "--redirect-allocators", "--single-links"]);
    for (is_busy, memtrace) in [(false, running.memtrace()), (true, running.memtrace()), (true, many_links)] {
        let session = memtrace.trace();
        running.tables.expect_redirected();
        let guardian = open_process(guardian_of(&session) as i32);
        if is_busy {
            assert_eq!(running.target.ask_line("busy"), "begun");
        }
        session.signal(libc::SIGKILL);
        println!("restored after {:?}", running.tables.await_own("killed"));
        session.finish();
        if is_busy {
            running.target.tell("");
            running.target.heard();
        }
        assert!(wait_readable(guardian.as_fd(), RESTORED_WITHIN), "the guardian ends");
    }
    assert!(running.blocks("make 100") > 1000);

    // What is meant for memtrace or its terminal does not reach the guardian.
    let session = running.memtrace().trace();
    let guardian = guardian_of(&session);
    let stat = fs::read_to_string(format!("/proc/{guardian}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[3], guardian.to_string(), "a session of its own");
    let held = fs::read_dir(format!("/proc/{guardian}/fd")).unwrap().flatten();
    let held: Vec<_> = held.map(|entry| fs::read_link(entry.path()).unwrap()).collect();
    let is_probe = |path: &&std::path::PathBuf| path.to_string_lossy().contains("anon_inode");
    assert_eq!(held.iter().find(is_probe), None, "{held:?}");
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTSTP] {
        // SAFETY: the guardian is a process of the session that runs.
        assert_eq!(unsafe { libc::kill(guardian as i32, number) }, 0);
    }
    running.tables.expect_redirected();
    session.signal(libc::SIGKILL);
    running.tables.await_own("the guardian had signals");
    session.finish();

    // Without it memtrace restores.
    let session = running.memtrace().trace();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(guardian_of(&session) as i32, libc::SIGKILL) }, 0);
    let finished = session.stop();
    finished.expect_code(0);
    running.tables.expect_own("the guardian was killed");
    running.target.quit();
}

#[test]
fn a_kill_at_any_moment_restores_the_tables() {
    let _root = as_root();
    let python = python("sid", 14);
    let mut running = Running::start(&python, &[]);
    let start = Instant::now();
    running.memtrace().trace().kill();
    running.tables.await_own("killed");
    let to_ready = start.elapsed();
    assert_eq!(running.target.ask_line("busy"), "begun");

    let end = Instant::now() + Duration::from_secs(30);
    // A multiplicative generator: other moments in each run would make failures that do not come again.
    let mut random = 0x2545_f491_u64;
    let (mut rounds, mut found_redirected, mut slowest) = (0, 0, Duration::ZERO);
    while rounds < 40 && Instant::now() < end {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 33) as f64 / (1_u64 << 31) as f64;
        let session = running.memtrace().spawn();
        // The moment is what is tried: any at all, or any after the first pointer was written.
        let mut start = Instant::now();
        let mut moment = to_ready.mul_f64(1.5 * share);
        if rounds % 2 == 0 {
            while running.tables.are_own() {
                assert!(start.elapsed() < LIMIT * slowdown(), "the tables are written to");
                std::thread::yield_now();
            }
            start = Instant::now();
            moment = to_ready.mul_f64((share - 0.5).max(0.0));
        }
        while start.elapsed() < moment {
            std::thread::yield_now();
        }
        session.signal(libc::SIGKILL);
        found_redirected += u32::from(!running.tables.are_own());
        slowest = slowest.max(running.tables.await_own(&format!("killed after {moment:?}")));
        assert!(!session.finish().status.success());
        rounds += 1;
    }
    println!("{rounds} kills, {found_redirected} with redirected tables, restored within {slowest:?}");
    assert!(rounds >= 5 && found_redirected >= 2);
    running.target.tell("");
    assert!(running.target.heard()[0].parse::<u64>().unwrap() > 0, "the target went on");
    assert!(running.blocks("make 1000") > 10_000);
    running.target.quit();
}

#[test]
fn what_the_target_does_meanwhile_is_respected() {
    let _root = as_root();
    let python = python("trixie", 13);
    let mut running = Running::start(&python, &[]);

    // A process that it forks has the tables as they were written, and a parent that nobody can tell.
    let session = running.memtrace().trace();
    let forked: u32 = running.target.ask_line("fork").parse().unwrap();
    let copy = Tables { own: running.tables.own.clone(), ..Tables::at(forked, running.tables.addr) };
    copy.expect_redirected();
    session.stop().report();
    copy.expect_own("a copy");
    let session = running.memtrace().trace();
    copy.expect_own("a copy from before");
    session.signal(libc::SIGKILL);
    running.tables.await_own("killed");
    session.finish();
    // SAFETY: the target's own, which nobody waits for.
    assert_eq!(unsafe { libc::kill(forked as i32, libc::SIGKILL) }, 0);

    // Hooks that it puts on its allocators stay. They call what they found, which does the same.
    let session = running.memtrace().trace();
    assert_eq!(running.target.ask_line("trace on"), "done");
    let hooked = running.tables.now();
    let report = session.stop().report();
    assert!(report.notes.iter().any(|note| note.contains("changed by the program")), "{:?}", report.notes);
    assert_eq!(running.tables.now(), hooked);
    let truth = running.blocks("make 1000");
    assert!(truth > 10_000);

    // Nor is anything written to another program.
    let mut running = Running::start(&python, &[]);
    let session = running.memtrace().trace();
    assert_eq!(running.target.ask_line("exec"), "ready");
    let report = session.stop().report();
    let has = |text: &str| report.notes.iter().any(|note| note.contains(text));
    assert!(has("called exec: the allocators of its new program are not redirected"), "{:?}", report.notes);
    assert!(report.coverage["py-object"]["alloc_share"].is_null(), "{:?}", report.coverage);
    let fresh = Tables::of(running.target.pid(), python.minor);
    assert!(fresh.own.iter().all(|word| word % 16 == 0), "{:x?}", fresh.own);
    assert!(running.blocks("make 1000") > 10_000);
    running.target.quit();
}

/// Runs memtrace on a process that it must refuse; the error.
#[track_caller]
fn refused(pid: u32) -> (String, String) {
    let run = Memtrace::new(["-p", &pid.to_string(), "--redirect-allocators"]).run();
    let (what, hint) = run.expect_error(3);
    println!("{what}\n{hint}");
    assert!(what.contains(&pid.to_string()) && hint.contains("nothing was written"), "{what}\n{hint}");
    (what, hint)
}

#[test]
fn tables_that_are_not_as_they_should_be_are_refused() {
    let _root = as_root();
    let trixie = python("trixie", 13);
    for (variables, word) in [
        (("PYTHONTRACEMALLOC", "1"), "tracemalloc over pymalloc"),
        (("PYTHONMALLOC", "malloc"), "memory: malloc"),
        (("PYTHONMALLOC", "debug"), "debug hooks over pymalloc"),
    ] {
        let running = Running::start(&trixie, &[variables]);
        assert!(refused(running.target.pid()).0.contains(word));
        running.tables.expect_own(word);
        running.target.quit();
    }
    // Another memtrace has written to them.
    let running = Running::start(&trixie, &[]);
    let session = running.memtrace().trace();
    assert!(refused(running.target.pid()).0.contains("already"));
    running.tables.expect_redirected();
    session.stop().report();
    running.tables.expect_own("the first one ended");
    running.target.quit();
    // Not a Python.
    let target = Target::start(&program("sizes", Language::C, Frames::Omitted), &[]);
    assert!(refused(target.pid()).0.contains("no CPython"));
    target.quit();
}

#[test]
fn code_without_second_addresses_is_refused() {
    let _root = as_root();
    let mut bookworm = of_suite("bookworm");
    bookworm.retain(|python| python.minor == 11);
    let python = bookworm.first().expect("a Python of Debian 12: run `cargo xtask pythons bookworm`");
    let (mut command, _copy) = python.command("redirect", "redirect.py");
    let target = Target::start_command(&mut command);
    let (what, hint) = refused(target.pid());
    assert!(what.contains("endbr64") && hint.contains("PYTHONMALLOC=malloc"), "{what}\n{hint}");

    // Of several targets all are written to, or none.
    let able = Running::start(&self::python("trixie", 13), &[]);
    let both = ["-p", &able.pid, "-p", &target.pid().to_string(), "--redirect-allocators"];
    let run = Memtrace::new(both).run();
    assert!(run.expect_error(3).0.contains(&target.pid().to_string()));
    able.tables.expect_own("the other one is refused");
    able.target.quit();
    target.quit();
}
