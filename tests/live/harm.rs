//! memtrace comes and goes, and is killed, again and again: the target does not mind.
//!
//! The environment variable `MEMTRACE_STRESS_CYCLES` says how often it comes and goes, 30 times unless said
//! otherwise; a fifth as often, but 12
//! times at least, it is killed.

use memtrace_tests::harness::deadline::slowdown;
use memtrace_tests::harness::{Frames, Language, Memtrace, Target, as_root, program};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

/// A malloc and its free take about 20 ns, with traps some 2,000.
fn full_speed_ns() -> u64 {
    100 * u64::from(slowdown())
}

/// Of the random moments. Another one finds other moments.
pub(crate) const SEED: u64 = 0x6d65_6d74_7261_6365;

fn cycles() -> usize {
    std::env::var("MEMTRACE_STRESS_CYCLES").map_or(30, |count| count.parse().expect("a number of cycles"))
}

/// Threads, exceptions, `fork` and `exec`, all the time.
pub(crate) fn busy_target() -> Target {
    Target::start(&program("churn", Language::Cxx, Frames::Omitted), &["children"])
}

/// The target tries for a second.
pub(crate) fn pair_ns(target: &mut Target) -> u64 {
    target.ask("pair")[1].parse().expect("nanoseconds")
}

/// Addresses in executable mappings of files at which the target's memory is not what its file says: that is
/// where breakpoints are.
pub(crate) fn breakpoints(pid: &str) -> Vec<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if !words[1].contains('x') || !words.get(5).is_some_and(|path| path.starts_with('/')) {
            continue;
        }
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = words[0].split_once('-').unwrap();
        let (start, offset) = (number(start), number(words[2]));
        let mut mapped = vec![0; usize::try_from(number(end) - start).unwrap()];
        memory.read_exact_at(&mut mapped, start).unwrap();
        let mut in_file = Vec::new();
        let mut file = File::open(words[5]).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.take(mapped.len() as u64).read_to_end(&mut in_file).unwrap();
        let differs = mapped.iter().zip(&in_file).enumerate().filter(|(_, (memory, file))| memory != file);
        found.extend(differs.map(|(index, _)| start + index as u64));
    }
    found
}

/// The target is as fast as without memtrace, and no breakpoint is left in it, be it a moment later: who kills
/// memtrace while it detaches does not wait for that.
#[track_caller]
pub(crate) fn expect_untouched(target: &mut Target, when: &str) {
    let pid = target.pid().to_string();
    let ns = pair_ns(target);
    let left = breakpoints(&pid);
    assert!(
        left.is_empty(),
        "{} breakpoints, the first at {:#x}, {when}; {ns} ns a pair",
        left.len(),
        left[0]
    );
    assert!(ns < full_speed_ns(), "a pair takes {ns} ns {when}, without a breakpoint");
}

/// All of the target's own sums are right, and it has gone on making children.
pub(crate) fn expect_right(target: &mut Target, children_before: u64) -> u64 {
    let answer = target.ask("check");
    let children = match &answer[..] {
        [ok, children] if ok == "ok" => children.parse().unwrap(),
        _ => panic!("the target is damaged: {answer:?}"),
    };
    assert!(children > children_before, "{children} children");
    children
}

#[test]
fn attaching_and_detaching_again_and_again_does_no_harm() {
    let _root = as_root();
    let mut target = busy_target();
    let pid = target.pid().to_string();
    let mut children = 0;
    let [mut attach, mut detach, mut of_processor] = [Vec::new(), Vec::new(), Vec::new()];
    for cycle in 0..cycles() {
        let processor_before = processor_time_of_children();
        let started = Instant::now();
        let session = Memtrace::new(["-p", &pid, "--format", "json"]).trace();
        attach.push(started.elapsed());
        if cycle % 10 == 0 {
            let traced_ns = pair_ns(&mut target);
            assert!(traced_ns > full_speed_ns(), "a pair takes {traced_ns} ns: is it traced?");
            assert!(breakpoints(&pid).len() > 10, "nothing is probed");
        }
        let stopped = Instant::now();
        session.stop().expect_code(0);
        detach.push(stopped.elapsed());
        of_processor.push(processor_time_of_children() - processor_before);
        expect_untouched(&mut target, &format!("after cycle {cycle}"));
        children = expect_right(&mut target, children);
    }
    target.quit();

    let [attach, detach, of_processor] = [attach, detach, of_processor].map(quartiles);
    println!("lower quartile, median, upper quartile, longest");
    println!("attach    {attach:?}\ndetach    {detach:?}\nprocessor {of_processor:?}\n{children} children");
    let second = Duration::from_secs(1) * slowdown();
    // How long attaching takes by the clock depends on what else the machine does, first of all the target.
    assert!(of_processor[1] < second, "processor time of memtrace for a whole cycle");
    // Detaching is mostly waiting for the kernel. Link by link it would take several seconds.
    assert!(detach[1] < second, "from the interrupt to the end");
}

/// What children that have ended and were waited for took in all. No other test runs meanwhile.
fn processor_time_of_children() -> Duration {
    // SAFETY: all-zero is a valid rusage, which getrusage fills in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` lives through the call.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(result, 0, "getrusage: {}", std::io::Error::last_os_error());
    [usage.ru_utime, usage.ru_stime].map(duration).iter().sum()
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_micros(
        u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).expect("a time since the start"),
    )
}

/// Lower quartile, median, upper quartile, longest.
fn quartiles(mut times: Vec<Duration>) -> [Duration; 4] {
    times.sort_unstable();
    [times[times.len() / 4], times[times.len() / 2], times[times.len() * 3 / 4], times[times.len() - 1]]
}

pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// When memtrace is killed; how far into that is left to chance.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Attaching,
    Tracing,
    Detaching,
}

#[test]
fn killing_memtrace_at_any_moment_does_no_harm() {
    let _root = as_root();
    let mut target = busy_target();
    let pid = target.pid().to_string();
    // How long the phases take here and now.
    let started = Instant::now();
    let session = Memtrace::new(["-p", &pid, "--format", "json"]).trace();
    let attach = started.elapsed();
    session.stop().expect_code(0);
    let detach = started.elapsed() - attach;

    let mut random = SEED;
    let mut children = 0;
    let mut killed = [0; 3];
    for number in 0..(cycles() / 5).max(12) {
        let (phase, range) = match number % 3 {
            0 => (Phase::Attaching, attach),
            1 => (Phase::Tracing, detach),
            _ => (Phase::Detaching, detach),
        };
        let moment = range.mul_f64((next_random(&mut random) % 1000) as f64 / 1000.0);
        let (memtrace, ready) = Memtrace::new(["-p", &pid, "--format", "json"]).ready_fd();
        let mut session = memtrace.spawn();
        if !matches!(phase, Phase::Attaching) {
            session.wait_ready(ready);
        }
        if matches!(phase, Phase::Detaching) {
            session.signal(libc::SIGINT);
        }
        // Nothing is waited for: the moment itself is what is tested.
        std::thread::sleep(moment);
        // One that was about to end may have ended by itself.
        let status = session.kill().status;
        killed[phase as usize] += usize::from(status.signal() == Some(libc::SIGKILL));
        expect_untouched(&mut target, &format!("after kill {number}, {phase:?} {moment:?}, seed {SEED:#x}"));
        children = expect_right(&mut target, children);
    }
    target.quit();
    println!("killed while attaching, tracing, detaching: {killed:?}");
    assert!(killed.iter().all(|count| *count > 0), "{killed:?}, seed {SEED:#x}, {attach:?} {detach:?}");
}
