//! Whether memtrace's stacks are gdb's.

use super::gdb::Hit;
use super::report::{FrameEntry, Row};
use super::shapes::names_of;
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

/// Where a frame is, whatever the addresses of the run were.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, at this offset in it.
    InFile(String, u64),
    /// In no file, at this address.
    At(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFile(path, offset) => {
                let name = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
                write!(f, "{name}+{offset:#x}")
            }
            Self::At(addr) => write!(f, "{addr:#x}"),
        }
    }
}

/// Blocks of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blocks {
    count: u64,
    bytes: u64,
}

/// What else is known of memtrace's run.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Where the kernel's code was: it is in no file, so that a report has its address.
    pub vdso: Range<u64>,
    /// The end of the path of a library that the target unloads at once. Where it has lain is not known any
    /// more when memtrace looks, and a report has the addresses in it; what of these can be compared is the
    /// offset in the page.
    pub unloaded: Option<&'static str>,
}

impl Circumstances {
    fn stack_of(&self, row: &Row, truth: &BTreeMap<Stack, Blocks>) -> Stack {
        let place = |frame| match place_of(frame) {
            Place::At(addr) if self.vdso.contains(&addr) => {
                Place::InFile("[vdso]".into(), addr - self.vdso.start)
            }
            Place::At(addr) => self.in_unloaded(addr, truth).unwrap_or(Place::At(addr)),
            place => place,
        };
        // Functions that were inlined have the place of the one they are inlined into.
        row.frames.iter().filter(|frame| !frame.inlined).map(place).collect()
    }

    fn in_unloaded(&self, addr: u64, truth: &BTreeMap<Stack, Blocks>) -> Option<Place> {
        let library = self.unloaded?;
        let is_same = |place: &&Place| match place {
            Place::InFile(path, offset) => {
                path.ends_with(library) && (offset ^ addr).is_multiple_of(PAGE_BYTES)
            }
            Place::At(_) => false,
        };
        truth.keys().flatten().find(is_same).cloned()
    }
}

const PAGE_BYTES: u64 = 4096;

/// What memtrace says of gdb's stacks. Counts are of distinct stacks, as gdb has them.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    /// The same frames, the same blocks.
    pub equal: usize,
    /// The innermost of gdb's frames, and memtrace says why no more: how many blocks' end for which reason.
    pub cut: BTreeMap<String, usize>,
    /// One text for each stack that gdb does not have, and for each that memtrace does not.
    pub wrong: Vec<String>,
    /// The last frame and the reason of what was cut, and how many were.
    pub cuts: BTreeMap<String, usize>,
    /// One text for each stack of which gdb itself says that it lost its way. Its innermost frames are compared all
    /// the same.
    pub lost_by_gdb: Vec<String>,
}

impl Sum for Blocks {
    fn sum<I: Iterator<Item = Self>>(blocks: I) -> Self {
        blocks.fold(Self::default(), |sum, blocks| Self {
            count: sum.count + blocks.count,
            bytes: sum.bytes + blocks.bytes,
        })
    }
}

type Stack = Vec<Place>;

fn place_of(frame: &FrameEntry) -> Place {
    match (&frame.module, frame.offset, &frame.address) {
        (Some(module), Some(offset), _) => Place::InFile(module.clone(), offset),
        (_, _, Some(addr)) => {
            let digits = addr.strip_prefix("0x").expect("an address is hexadecimal");
            Place::At(u64::from_str_radix(digits, 16).expect("an address"))
        }
        _ => panic!("a native frame has a place: {frame:?}"),
    }
}

fn truth_of(hit: &Hit) -> Stack {
    let place = |(path, at, _): &(Option<String>, u64, Option<String>)| match path {
        Some(path) => Place::InFile(path.clone(), *at),
        None => Place::At(*at),
    };
    hit.frames.iter().map(place).collect()
}

/// A row of memtrace's.
struct Seen<'a> {
    stack: Stack,
    blocks: Blocks,
    truncated: Option<&'a str>,
}

/// Takes the row's blocks from those that gdb has for the same stack, where they are there.
fn take(truth: &mut BTreeMap<Stack, Blocks>, row: &Seen<'_>) -> bool {
    let Some(left) = truth.get_mut(&row.stack) else { return false };
    if *left == row.blocks {
        truth.remove(&row.stack);
        return true;
    }
    // Of blocks with one stack some may have been seen before its code was known, with fewer frames.
    let is_part = row.blocks.count < left.count && row.blocks.bytes < left.bytes;
    if is_part {
        left.count -= row.blocks.count;
        left.bytes -= row.blocks.bytes;
    }
    is_part
}

/// A stack in one line; of a long one its ends.
fn line(stack: &[Place]) -> String {
    let words: Vec<String> = stack.iter().map(Place::to_string).collect();
    words.join(" < ")
}

impl Agreement {
    /// Compares what gdb saw with what memtrace has, of the same plan.
    ///
    /// Equal stacks are one row in memtrace's report, so they are taken together here. Where memtrace ends
    /// early, stacks that begin with the same frames may have become one row: it must have the blocks of all
    /// of them.
    pub fn between(hits: &[Hit], rows: &[Row], run: &Circumstances) -> Self {
        let mut agreement = Self::default();
        let mut names = BTreeMap::new();
        let mut truth: BTreeMap<Stack, Blocks> = BTreeMap::new();
        for hit in hits {
            let stack = truth_of(hit);
            for (place, (_, _, name)) in stack.iter().zip(&hit.frames) {
                if let Some(name) = name {
                    names.insert(place.clone(), name.clone());
                }
            }
            if let Some(why) = &hit.cut {
                agreement.lost_by_gdb.push(format!("{why}: {} bytes {}", hit.bytes, line(&stack)));
            }
            let blocks = truth.entry(stack).or_default();
            blocks.count += 1;
            blocks.bytes += hit.bytes;
        }
        let told = truth.clone();
        let mut rest = Vec::new();
        for row in rows {
            let row = Seen {
                stack: run.stack_of(row, &told),
                blocks: Blocks { count: row.alloc_count, bytes: row.alloc_bytes },
                truncated: row.truncated.as_deref(),
            };
            if take(&mut truth, &row) {
                agreement.equal += 1;
            } else {
                rest.push(row);
            }
        }
        rest.sort_by_key(|row| row.stack.len());
        while !rest.is_empty() {
            // The rows of which the first may have become a part: all that begin as it does.
            let first = rest[0].stack.clone();
            let (family, others) = rest.into_iter().partition(|row| row.stack.starts_with(&first));
            rest = others;
            agreement.enter_family(family, &mut truth, &told, &names);
        }
        for (stack, blocks) in &truth {
            agreement.wrong.push(explain("not seen", *blocks, &[], Some(stack), &names));
        }
        agreement
    }

    /// Rows that begin with the same frames. Where all of them are cut, it cannot be told which block is in
    /// which: together they have the blocks of all of gdb's stacks that begin so.
    fn enter_family(
        &mut self,
        family: Vec<Seen<'_>>,
        truth: &mut BTreeMap<Stack, Blocks>,
        told: &BTreeMap<Stack, Blocks>,
        names: &BTreeMap<Place, String>,
    ) {
        let begins = |stack: &Stack, row: &Seen<'_>| stack.starts_with(&row.stack);
        let sum_of = |truth: &BTreeMap<Stack, Blocks>, row: &Seen<'_>| {
            truth.iter().filter(|(stack, _)| begins(stack, row)).map(|(_, blocks)| *blocks).sum::<Blocks>()
        };
        let enough = |row: &Seen<'_>| sum_of(truth, row).count >= row.blocks.count;
        let all: Blocks = family.iter().map(|row| row.blocks).sum();
        let is_cut = family.iter().all(|row| row.truncated.is_some() && enough(row));
        if is_cut && sum_of(truth, &family[0]) == all {
            truth.retain(|stack, _| !begins(stack, &family[0]));
            for row in &family {
                let why = row.truncated.unwrap_or_default();
                let count = usize::try_from(row.blocks.count).unwrap_or(usize::MAX);
                *self.cut.entry(why.to_owned()).or_default() += count;
                *self.cuts.entry(explain_cut(why, &row.stack, names)).or_default() += count;
            }
            return;
        }
        for row in family {
            let why = match told.get(&row.stack) {
                Some(told) => format!("where gdb has {} bytes in {}", told.bytes, told.count),
                None => row.truncated.unwrap_or("whole").to_owned(),
            };
            let likely = likeliest(&row.stack, row.blocks, told);
            self.wrong.push(explain(&why, row.blocks, &row.stack, likely, names));
        }
    }

    /// The wrong stacks, alike ones together: how many, and one of them.
    pub fn wrong_kinds(&self) -> Vec<(usize, &str)> {
        let mut kinds: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for text in &self.wrong {
            let kind = text.rsplit_once(" (").map_or(text.as_str(), |(kind, _)| kind);
            kinds.entry(kind).or_insert((0, text)).0 += 1;
        }
        let mut kinds: Vec<_> = kinds.into_values().collect();
        kinds.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        kinds
    }

    /// Distinct stacks that gdb has.
    pub fn all(&self) -> usize {
        self.equal + self.cut.values().sum::<usize>() + self.wrong.len()
    }

    /// One line for a table.
    pub fn summary(&self, name: &str) -> String {
        let cut: Vec<String> = self.cut.iter().map(|(why, count)| format!("{count} {why}")).collect();
        let share = 100.0 * self.equal as f64 / self.all().max(1) as f64;
        format!(
            "{name:<24} {:>5} equal ({share:.2} %) {:>4} wrong, cut: {}",
            self.equal,
            self.wrong.len(),
            if cut.is_empty() { "none".to_owned() } else { cut.join(", ") }
        )
    }
}

/// The one of gdb's stacks that a wrong one may have been meant to be: of the same size.
fn likeliest<'a>(stack: &[Place], blocks: Blocks, truth: &'a BTreeMap<Stack, Blocks>) -> Option<&'a Stack> {
    let common = |other: &Stack| other.iter().zip(stack).take_while(|(one, other)| one == other).count();
    let same_size = truth.iter().find(|(_, other)| **other == blocks).map(|(other, _)| other);
    same_size.or_else(|| truth.keys().max_by_key(|other| common(other)))
}

/// Where a stack was cut.
fn explain_cut(why: &str, got: &[Place], names: &BTreeMap<Place, String>) -> String {
    let last = got.last().map_or_else(|| "none".to_owned(), |last| named(last, names));
    format!("{why}: the last frame is {last}")
}

fn named(place: &Place, names: &BTreeMap<Place, String>) -> String {
    let name = names.get(place).cloned().or_else(|| match place {
        Place::InFile(path, offset) => symbol(Path::new(path), *offset),
        Place::At(_) => None,
    });
    name.map_or_else(|| place.to_string(), |name| format!("{place} ({name})"))
}

/// The function of a return address in a program of which a copy with symbols lies beside it.
fn symbol(program: &Path, offset: u64) -> Option<String> {
    let copy = names_of(program);
    if !copy.exists() {
        return None;
    }
    let call = format!("{:#x}", offset - 1);
    // In these programs the code lies at the same place in the file and in memory.
    let output = Command::new("addr2line").args(["-f", "-C", "-e"]).arg(copy).arg(call).output().ok()?;
    let name = String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned();
    (name != "??").then_some(name)
}

/// Where two stacks part, with what is known of the frames around.
fn explain(
    why: &str,
    blocks: Blocks,
    got: &[Place],
    whole: Option<&Stack>,
    names: &BTreeMap<Place, String>,
) -> String {
    let name = |place: &Place| named(place, names);
    let whole = whole.map_or(&[][..], Vec::as_slice);
    let common = got.iter().zip(whole).take_while(|(one, other)| one == other).count();
    let some = |stack: &[Place]| {
        let words: Vec<String> = stack.iter().take(3).map(name).collect();
        if words.is_empty() { "end".to_owned() } else { words.join(" < ") }
    };
    format!(
        "{why}: after {} memtrace has {}; gdb has {} ({common} frames agree; {} bytes in {})",
        common.checked_sub(1).map_or_else(|| "none".to_owned(), |last| name(&got[last])),
        some(&got[common..]),
        some(&whole[common.min(whole.len())..]),
        blocks.bytes,
        blocks.count
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(bytes: u64, frames: &[u64]) -> Hit {
        let frames = frames.iter().map(|offset| (Some("/a".to_owned()), *offset, None)).collect();
        Hit { function: "malloc".into(), bytes, frames, cut: None }
    }

    fn row(count: u64, bytes: u64, frames: &[u64], truncated: Option<&str>) -> Row {
        let frame = |offset: &u64| {
            serde_json::json!({ "kind": "native", "function": null, "file": null, "line": null, "module": "/a",
                                "address": "0x1", "offset": offset, "inlined": false })
        };
        let frames: Vec<_> = frames.iter().map(frame).collect();
        let row = serde_json::json!({
            "pid": 1, "domain": "malloc", "outstanding_count": 0, "outstanding_bytes": 0, "alloc_count": count,
            "alloc_bytes": bytes, "free_count": 0, "free_bytes": 0, "bytes_are": "requested",
            "oldest_age_ms": null, "newest_age_ms": null, "frames": frames, "truncated": truncated
        });
        serde_json::from_value(row).unwrap()
    }

    fn between(hits: &[Hit], rows: &[Row]) -> Agreement {
        Agreement::between(hits, rows, &Circumstances::default())
    }

    #[test]
    fn equal_stacks_are_taken_together() {
        let hits = [hit(7, &[1, 2]), hit(8, &[1, 2]), hit(9, &[3])];
        let rows = [row(2, 15, &[1, 2], None), row(1, 9, &[3], None)];
        let agreement = between(&hits, &rows);
        assert_eq!((agreement.equal, agreement.all(), agreement.wrong.len()), (2, 2, 0));
    }

    #[test]
    fn what_is_cut_has_a_reason_and_the_blocks_of_all_that_it_may_be() {
        let hits = [hit(7, &[1, 2, 3]), hit(8, &[1, 2, 4]), hit(9, &[1, 5])];
        let cut = row(2, 15, &[1, 2], Some("a reason"));
        let shorter = row(1, 9, &[1], Some("another"));
        let agreement = between(&hits, &[cut.clone(), shorter]);
        assert_eq!(agreement.cut, BTreeMap::from([("a reason".into(), 2), ("another".into(), 1)]));
        assert!(agreement.wrong.is_empty(), "{:?}", agreement.wrong);

        let without_reason = Row { truncated: None, ..cut.clone() };
        assert_eq!(between(&hits[..2], &[without_reason]).wrong.len(), 3);
        let of_one_more = Row { alloc_count: 3, ..cut };
        assert_eq!(between(&hits[..2], &[of_one_more]).wrong.len(), 3);
    }

    #[test]
    fn a_frame_that_gdb_does_not_have_is_wrong() {
        let agreement = between(&[hit(7, &[1, 2])], &[row(1, 7, &[1, 3, 2], Some("a reason"))]);
        assert_eq!((agreement.equal, agreement.wrong.len()), (0, 2));
        assert!(
            agreement.wrong[0].contains("after a+0x1 memtrace has a+0x3 < a+0x2; gdb has a+0x2"),
            "{agreement:?}"
        );
        let agreement = between(&[hit(7, &[1, 2])], &[]);
        assert_eq!(agreement.wrong.len(), 1);
        let agreement = between(&[], &[row(1, 7, &[1], None)]);
        assert_eq!(agreement.wrong.len(), 1);
    }
}
