//! Processes that cannot be followed.

use super::running::{Running, program, tracers};
use super::*;

#[test]
fn a_second_memtrace_is_named() {
    let program = program("int main(void) { say(getpid()); hear(); return 0; }");
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    let first = follow(&[tgid]).unwrap();
    match follow(&[tgid]).unwrap_err() {
        LaunchError::AlreadyTraced { tgid: of, tracer, name } => {
            assert_eq!((of, tracer, &*name), (tgid, std::process::id(), "memtrace-ptrace"));
        }
        other => panic!("{other:?}"),
    }
    drop(first);
    while tracers(tgid) != [0] {
        std::thread::yield_now();
    }
    running.say();
    assert_eq!(running.code(), 0);
    assert!(matches!(follow(&[tgid]), Err(LaunchError::NoSuchProcess { tgid: of }) if of == tgid));
}

#[test]
fn another_debugger_is_named() {
    let program = program("int main(void) { say(getpid()); hear(); return 0; }");
    let debugger = Program::new(
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/ptrace.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            if (ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0)) return 1;
            printf("%d\n", getpid());
            fflush(stdout);
            getchar();
            return 0;
        }"#,
        &[],
    );
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    let mut tracing = Running::start(&format!("{} {tgid}", debugger.path()));
    let error = follow(&[tgid]).unwrap_err();
    let message = error.to_string();
    assert!(
        matches!(error, LaunchError::AlreadyTraced { tracer, .. } if tracer == tracing.tgid),
        "{error:?}"
    );
    assert!(message.contains(&format!("program ({}) traces it already", tracing.tgid)), "{message}");
    assert_eq!(tracers(tgid), [tracing.tgid]);
    tracing.say();
    assert_eq!(tracing.code(), 0);
    assert_eq!(follow(&[tgid]).unwrap().tgids, [tgid]);
    running.say();
    assert_eq!(running.code(), 0);
}

#[test]
fn the_missing_capability_is_named() {
    let program = program("int main(void) { say(getpid()); hear(); return 0; }");
    let mut running = Running::start(&program.path());
    let tgid = running.tgid;
    // A thread without the capability, as its process's others keep it.
    let refused = std::thread::spawn(move || {
        drop_capability(CAP_SYS_PTRACE);
        follow(&[tgid]).unwrap_err()
    });
    match refused.join().unwrap() {
        error @ LaunchError::NotPermitted { tgid: of } => {
            assert_eq!(of, tgid);
            assert!(error.to_string().contains("CAP_SYS_PTRACE"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(tracers(tgid), [0]);
    running.say();
    assert_eq!(running.code(), 0);
}

#[test]
fn one_that_cannot_be_followed_leaves_the_others_alone() {
    let program = program("int main(void) { say(getpid()); hear(); return 0; }");
    let mut running = Running::start(&program.path());
    // No process has the highest id.
    let error = follow(&[running.tgid, 0x3f_ffff]).unwrap_err();
    assert!(matches!(error, LaunchError::NoSuchProcess { tgid: 0x3f_ffff }), "{error:?}");
    assert_eq!(tracers(running.tgid), [0]);
    running.say();
    assert_eq!(running.code(), 0);
}

/// Of `include/uapi/linux/capability.h`.
const CAP_SYS_PTRACE: u32 = 19;

/// Takes a capability from the calling thread.
fn drop_capability(number: u32) {
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: version 3 of the call reads and writes two structures of three words behind a header of two.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
        sets[0][0] &= !(1 << number);
        sets[0][1] &= !(1 << number);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
    }
}
