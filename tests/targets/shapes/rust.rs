//! Shapes of Rust, as in `main.c`: each follows the path, whose next byte is the shape that it calls; where it
//! ends, a block is planted.
//!
//! usage: rust <step>: of the pairs, every <step>th. Commands: `go`, and `quit`.

use std::alloc::{Layout, alloc};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, Once, OnceLock, mpsc};

static FIRST_BYTES: usize = 700_000;
static NEXT_BYTES: AtomicUsize = AtomicUsize::new(FIRST_BYTES);

/// The path, and how much of it was followed; `PLANTED` once the block is there.
static PATH: Mutex<[usize; 4]> = Mutex::new([END; 4]);
static PLACE: AtomicUsize = AtomicUsize::new(PLANTED);
const END: usize = usize::MAX;
const PLANTED: usize = usize::MAX;

/// Goes on along the path, without a frame of its own. A callback that is called again does nothing.
#[inline(always)]
fn follow() {
    let place = PLACE.load(SeqCst);
    if place == PLANTED {
        return;
    }
    let shape = PATH.lock().unwrap()[place];
    if shape == END {
        PLACE.store(PLANTED, SeqCst);
        let bytes = NEXT_BYTES.fetch_add(1, SeqCst);
        // SAFETY: the layout has a size.
        black_box(unsafe { alloc(Layout::from_size_align(bytes, 1).unwrap()) });
    } else {
        PLACE.store(place + 1, SeqCst);
        SHAPES[shape]();
    }
    black_box(());
}

#[inline(never)]
fn plain() {
    follow();
}

#[inline(never)]
fn call(function: impl Fn(usize) -> usize) -> usize {
    function(black_box(3))
}

fn closure() {
    let kept = black_box(String::from("kept"));
    let sum = call(|number| {
        follow();
        number + kept.len()
    });
    assert_eq!(sum, 7);
}

fn boxed_closure() {
    let kept = black_box(vec![1, 2, 3]);
    let function: Box<dyn Fn(usize) -> usize> = Box::new(move |number| {
        follow();
        number + kept.len()
    });
    assert_eq!(call(black_box(function)), 6);
}

fn iterators() {
    let words = black_box(vec!["a", "b", "c"]);
    let text: Vec<String> = words
        .iter()
        .filter(|word| {
            follow();
            **word != "b"
        })
        .zip(1..)
        .map(|(word, number)| format!("{word}{number}"))
        .collect();
    assert_eq!(text, ["a1", "c2"]);
}

fn fold() {
    let numbers: Vec<u32> = black_box((0..5).collect());
    let sum = numbers.iter().rev().skip(1).try_fold(0u32, |sum, number| {
        follow();
        sum.checked_add(*number)
    });
    assert_eq!(sum, Some(6));
}

fn sort() {
    let mut words: Vec<String> = ["c", "a", "b"].iter().map(|word| (*word).to_owned()).collect();
    words.sort_by(|one, other| {
        follow();
        one.cmp(other)
    });
    assert_eq!(words[0], "a");
}

fn sort_many() {
    let mut numbers: Vec<u64> = (0..500).map(|number| number * 37 % 500).collect();
    numbers.sort_unstable_by_key(|number| {
        follow();
        *number
    });
    assert_eq!(numbers[7], 7);
}

fn map() {
    #[derive(PartialEq, Eq)]
    struct Key(u32);
    impl PartialOrd for Key {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Key {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            follow();
            self.0.cmp(&other.0)
        }
    }
    let map: BTreeMap<Key, u32> = (0..4).map(|number| (Key(number), number)).collect();
    assert_eq!(black_box(map).len(), 4);
}

fn thread() {
    let handle = std::thread::spawn(|| {
        follow();
        black_box(5)
    });
    assert_eq!(handle.join().unwrap(), 5);
}

fn scoped_thread() {
    let kept = black_box(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            follow();
            assert_eq!(kept, 4);
        });
    });
}

/// The payload of a panic that no hook tells of.
fn caught_panic() {
    let result = catch_unwind(|| {
        if black_box(true) {
            resume_unwind(Box::new(7));
        }
    });
    assert!(result.is_err());
    follow();
}

fn catching() {
    let result = catch_unwind(AssertUnwindSafe(|| {
        follow();
        black_box(8)
    }));
    assert_eq!(result.unwrap(), 8);
}

struct Follower(#[allow(dead_code, reason = "what a drop has to do with")] u64);

impl Drop for Follower {
    fn drop(&mut self) {
        follow();
    }
}

#[inline(never)]
fn panic_with(follower: Follower) {
    if black_box(true) {
        resume_unwind(Box::new(7));
    }
    black_box(follower.0);
}

/// Dropped while a panic unwinds.
fn drop_in_panic() {
    let result = catch_unwind(|| panic_with(Follower(black_box(1))));
    assert!(result.is_err());
}

fn drop_of_vec() {
    let followers: Vec<Follower> = (0..3).map(Follower).collect();
    drop(black_box(followers));
}

fn drop_of_rc() {
    let shared = Rc::new(RefCell::new(Some(Follower(1))));
    let other = Rc::clone(&shared);
    drop(black_box(shared));
    black_box(other.borrow_mut().take());
}

trait Follow {
    fn follow(&mut self, text: &str) -> usize;
}

impl Follow for [u64; 20] {
    #[inline(never)]
    fn follow(&mut self, text: &str) -> usize {
        follow();
        self[3] as usize + text.len()
    }
}

fn dynamic() {
    let mut object: Box<dyn Follow> = black_box(Box::new([1; 20]));
    assert_eq!(object.follow("abc"), 4);
}

fn generic() {
    fn nest<T: std::fmt::Debug + Clone>(depth: usize, value: T) -> usize {
        if depth == 0 {
            follow();
            return 0;
        }
        1 + nest(depth - 1, black_box(value.clone()))
    }
    assert_eq!(nest(black_box(6), (1u8, "a".to_owned())), 6);
}

fn once() {
    let once = Once::new();
    once.call_once(follow_named);
    let lock = OnceLock::new();
    assert_eq!(*lock.get_or_init(|| black_box(3)), 3);
}

#[inline(never)]
fn follow_named() {
    follow();
}

fn channel() {
    let (sender, receiver) = mpsc::channel();
    sender.send(1u32).unwrap();
    drop(sender);
    for number in receiver {
        follow();
        assert_eq!(number, 1);
    }
}

fn large_frame() {
    let mut room = [0u8; 100_000];
    black_box(&mut room);
    follow();
    assert_eq!(black_box(room)[7], 0);
}

#[repr(align(128))]
struct Aligned([u8; 128]);

fn aligned() {
    let mut room = Aligned([1; 128]);
    black_box(&mut room);
    follow();
    assert_eq!(black_box(room).0[100], 1);
}

struct Shown;

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        follow();
        f.pad("shown")
    }
}

fn format() {
    assert_eq!(format!("{:>9} {}", black_box(Shown), 3), "shown 3".replace("shown", "    shown"));
}

fn writer() {
    struct Out;
    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            follow();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut out = std::io::BufWriter::with_capacity(8, Out);
    writeln!(out, "{} {:?}", 1.5, black_box("text")).unwrap();
}

extern "C" fn compare(one: *const std::ffi::c_void, other: *const std::ffi::c_void) -> i32 {
    follow();
    // SAFETY: qsort gives addresses of elements.
    unsafe { *one.cast::<i32>() - *other.cast::<i32>() }
}

unsafe extern "C" {
    fn qsort(
        base: *mut std::ffi::c_void,
        count: usize,
        bytes: usize,
        compare: extern "C" fn(*const std::ffi::c_void, *const std::ffi::c_void) -> i32,
    );
}

/// From C.
fn foreign() {
    let mut numbers = [3, 1, 2];
    // SAFETY: three elements of four bytes.
    unsafe { qsort(numbers.as_mut_ptr().cast(), 3, 4, compare) };
    assert_eq!(numbers, [1, 2, 3]);
}

thread_local! {
    static KEPT: RefCell<Option<Follower>> = const { RefCell::new(None) };
}

/// The destructor of what a thread kept.
fn thread_local() {
    std::thread::spawn(|| KEPT.with(|kept| *kept.borrow_mut() = Some(Follower(2)))).join().unwrap();
}

const SHAPES: [fn(); 27] = [
    plain, closure, boxed_closure, iterators, fold, sort, sort_many, map, thread, scoped_thread, caught_panic,
    catching, drop_in_panic, drop_of_vec, drop_of_rc, dynamic, generic, once, channel, large_frame, aligned,
    format, writer, foreign, thread_local, plant_collections, follow_named,
];

/// What the standard library allocates for itself, of a size that is planted.
fn plant_collections() {
    if PLACE.load(SeqCst) == PLANTED {
        return;
    }
    follow();
    let next = || NEXT_BYTES.fetch_add(1, SeqCst);
    let mut bytes: Vec<u8> = Vec::with_capacity(next());
    bytes.push(1);
    bytes.reserve_exact(next());
    black_box(&mut bytes).shrink_to(next());
    black_box("a".repeat(next()));
    black_box(vec![0u8; next()]);
    black_box(vec![0u8; next()].into_boxed_slice());
}

#[inline(never)]
fn walk_path(letters: [usize; 4]) {
    *PATH.lock().unwrap() = letters;
    PLACE.store(0, SeqCst);
    follow();
    assert_eq!(PLACE.load(SeqCst), PLANTED, "path {letters:?} was left");
}

fn walk_all(step: usize) {
    walk_path([END; 4]);
    for one in 0..SHAPES.len() {
        walk_path([one, END, END, END]);
        for other in (one % step..SHAPES.len()).step_by(step) {
            walk_path([one, other, END, END]);
        }
    }
}

fn answer(line: &str) {
    let mut out = std::io::stdout();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

fn main() {
    let step = std::env::args().nth(1).map_or(1, |step| step.parse().unwrap());
    answer("ready\n");
    let mut command = String::new();
    for byte in std::io::stdin().bytes() {
        match byte.unwrap() {
            b'\n' if command == "quit" => return,
            b'\n' => {
                walk_all(step);
                command.clear();
                answer("done\n");
            }
            letter => command.push(char::from(letter)),
        }
    }
}
