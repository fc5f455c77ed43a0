//! The rows of a report: one for each distinct stack and domain.
//!
//! The books have a row for each stack that the kernel side sent, and the domain that its probe told. Stacks
//! that began in different parts of CPython's allocator may be the same without them; and what a block of
//! pymalloc is, only the call that asked for it tells, or what is in the block.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use tracer_common::event::{Asked, ContentRecord, WalkEnd};
use tracer_common::probe::Domain;

use super::frames::Framer;
use super::tally::{Scale, Sum, Tally, Weighed};
use super::{Names, RunFacts, Traced, add, truncation};
use crate::ledger::Live;
use crate::model::{
    BytesAre, CodeAddr, Content, Estimate, Family, Frame, FrameKind, Loss, NormalizedStack,
    PYTHON_NAMES_LOST, StackRow, TypeCount,
};
use crate::trace::Trace;

/// What a row shows for a mapping that pymalloc made for itself.
const ARENA: &str = "pymalloc arena";

/// Outstanding blocks of one row of the books that have the same content.
#[derive(Clone, Debug, Default)]
struct Old {
    blocks: Tally,
    oldest_ns: u64,
    newest_ns: u64,
}

/// What the single blocks of one row of the books add to its totals.
#[derive(Clone, Debug, Default)]
struct Blocks {
    /// Old enough to be listed, by content. Few rows have blocks of more than two.
    old: Vec<(u16, Old)>,
    /// Unsure blocks that are too young to be listed, of those that stand for themselves.
    young_unsure: Sum,
    /// Unsure blocks of a sample that are not.
    old_unsure: Tally,
}

/// What makes a row of its own.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    domain: Domain,
    is_arena: bool,
    /// `None` where the stack was lost.
    stack: Option<(&'a [CodeAddr], WalkEnd)>,
}

/// A row that is being put together.
#[derive(Default)]
struct Draft<'a> {
    stack: Option<&'a NormalizedStack>,
    freed: Sum,
    /// Freed too, of a sample.
    freed_weighed: Weighed,
    /// Blocks that the allocator told of, and for how many they stood.
    told: (u64, f64),
    /// By type and part, where they are known.
    outstanding: BTreeMap<Option<(&'a str, Option<&'a str>)>, Tally>,
    unsure: Sum,
    unsure_seen: Tally,
    cached: Tally,
    ages_ns: Option<(u64, u64)>,
    is_held: bool,
}

/// The rows of one target.
pub(super) fn rows<'a>(
    place: usize,
    traced: &'a Traced<'_>,
    names: &Names,
    facts: &RunFacts,
    loss: &mut Loss,
) -> Vec<StackRow> {
    let trace = traced.trace;
    let blocks = blocks(trace, facts);
    let scale = Scale::new(facts.sampling.as_ref(), trace.ledger.windows());
    let splits_python = facts.domains.iter().any(|domain| is_python(*domain));
    let mut drafts: HashMap<Key<'a>, Draft<'a>> = HashMap::new();
    // In the order of the books.
    let mut order = Vec::new();
    for (totals, blocks) in trace.ledger.rows().iter().zip(&blocks) {
        let stack = trace.stacks.get(&totals.stack);
        let asked = stack.map_or(Asked::Unknown, |stack| stack.asked);
        let is_arena = asked == Asked::Arena;
        let asked = if splits_python { asked } else { Asked::Unknown };
        let sampled = &totals.sampled;
        let told = if totals.is_told { (sampled.seen_count, sampled.alloc_count) } else { (0, 0.0) };
        let mut add_to = |domain: Domain, add: &dyn Fn(&mut Draft<'a>)| {
            let frames = stack.map(|stack| (&*stack.frames, stack.end));
            let entry = drafts.entry(Key { domain, is_arena, stack: frames });
            if let Entry::Vacant(_) = entry {
                order.push((domain, is_arena, frames));
            }
            let draft = entry.or_default();
            draft.stack = stack;
            draft.is_held |= totals.is_held;
            draft.told = (draft.told.0 + told.0, draft.told.1 + told.1);
            add(draft);
        };
        let gone = Sum { count: totals.free_count, bytes: totals.free_bytes };
        let unsure = Sum {
            count: totals.unsure_count - blocks.young_unsure.count,
            bytes: totals.unsure_bytes - blocks.young_unsure.bytes,
        };
        let gone_weighed = Weighed { count: sampled.free_count, bytes: sampled.free_bytes };
        // What an allocator tells is of no window.
        let gone_weighed = if totals.is_told { gone_weighed } else { scale.corrected(gone_weighed) };
        let is_any_sampled = sampled.free_count > 0.0 || !blocks.old_unsure.is_exact();
        if gone.count + gone.bytes + unsure.count > 0 || is_any_sampled {
            add_to(domain_of(totals.domain, asked, None), &|draft| {
                draft.freed.add(gone);
                draft.freed_weighed.add(gone_weighed);
                draft.unsure.add(unsure);
                draft.unsure_seen.add(&blocks.old_unsure);
            });
        }
        for (number, old) in &blocks.old {
            let content = content(trace, *number);
            add_to(domain_of(totals.domain, asked, content), &|draft| draft.add_outstanding(old, content));
        }
    }
    let mut framer = Framer::new(names, &trace.codes);
    let mut unnamed = 0;
    // A stack may be in several rows, of several domains.
    let mut counted: HashMap<&[CodeAddr], ()> = HashMap::new();
    let mut rows = Vec::new();
    for (domain, is_arena, stack) in order {
        let Some(draft) = drafts.remove(&Key { domain, is_arena, stack }) else { continue };
        if !facts.domains.contains(&domain) {
            continue;
        }
        let row = draft.finish((traced.target.pid, domain, is_arena), &scale, &mut framer);
        match draft.stack {
            None => loss.stacks_lost += row.alloc_count + row.unsure_count,
            Some(stack) if counted.insert(&stack.frames, ()).is_none() => {
                loss.stacks_truncated += u64::from(stack.end != WalkEnd::Complete);
                unnamed += row.frames.iter().filter(|frame| is_unnamed_python(frame)).count() as u64;
            }
            Some(_) => {}
        }
        rows.push(StackRow { target: Some(place), ..row });
    }
    add(&mut loss.detail, PYTHON_NAMES_LOST, unnamed);
    rows
}

fn blocks(trace: &Trace, facts: &RunFacts) -> Vec<Blocks> {
    let min_age_ns = u64::try_from(facts.min_age.as_nanos()).unwrap_or(u64::MAX);
    let maturity_ns = facts.sampling.as_ref().map_or(0, |sampling| sampling.maturity_ns).max(min_age_ns);
    let age_ns = |block: &Live| facts.now_ns.saturating_sub(block.time_ns);
    // Nobody need be asked of what an allocator tells of.
    let is_told = |block: &Live| trace.ledger.rows().get(block.row).is_told;
    let is_asked = |block: &Live| !block.weight.is_exact() && !is_told(block);
    let is_old = |block: &Live| age_ns(block) >= if is_asked(block) { maturity_ns } else { min_age_ns };
    let windows = trace.ledger.windows();
    let mut all = vec![Blocks::default(); trace.ledger.rows().len()];
    for block in trace.ledger.outstanding().filter(is_old) {
        let old = &mut all[block.row.index()].old;
        let index = match old.iter().position(|(content, _)| *content == block.content) {
            Some(index) => index,
            None => {
                old.push((block.content, Old { newest_ns: u64::MAX, ..Old::default() }));
                old.len() - 1
            }
        };
        let old = &mut old[index].1;
        old.blocks.add_block(&block, is_told(&block), windows);
        old.oldest_ns = old.oldest_ns.max(age_ns(&block));
        old.newest_ns = old.newest_ns.min(age_ns(&block));
    }
    for block in trace.ledger.unsure() {
        let of_row = &mut all[block.row.index()];
        match (block.weight.is_exact(), is_old(&block)) {
            (true, false) => of_row.young_unsure.add(Sum { count: 1, bytes: block.size_bytes }),
            (false, true) => of_row.old_unsure.add_block(&block, is_told(&block), windows),
            (true, true) | (false, false) => {}
        }
    }
    all
}

/// What a number of the events stands for; `None` where nobody has looked, or the recording lacks its end.
fn content(trace: &Trace, number: u16) -> Option<&Content> {
    if number == ContentRecord::UNKNOWN {
        return None;
    }
    trace.contents.get(usize::from(number) - 1)
}

const fn is_python(domain: Domain) -> bool {
    matches!(domain, Domain::PyRaw | Domain::PyMem | Domain::PyObject)
}

/// The domain of blocks in a row of the books: what they are, else what the call asked for, else what the
/// probe tells.
fn domain_of(probed: Domain, asked: Asked, content: Option<&Content>) -> Domain {
    let by_call = match asked {
        Asked::PyRaw => Some(Domain::PyRaw),
        Asked::PyMem => Some(Domain::PyMem),
        Asked::PyObject => Some(Domain::PyObject),
        Asked::Unknown | Asked::Arena | Asked::Interpreter => None,
    };
    match content {
        Some(Content { type_name: Some(_), part: None, .. }) => Domain::PyObject,
        Some(Content { family: Some(Family::Object), .. }) => by_call.unwrap_or(Domain::PyObject),
        Some(Content { family: Some(Family::Mem), .. }) => by_call.unwrap_or(Domain::PyMem),
        // In a pool there are objects, and what `PyMem_*` gave.
        Some(_) if probed == Domain::PyObject => by_call.unwrap_or(Domain::PyMem),
        Some(Content { type_name: Some(_), .. }) if asked == Asked::Interpreter => Domain::PyMem,
        _ if asked == Asked::Interpreter => Domain::PyRaw,
        _ => by_call.unwrap_or(probed),
    }
}

impl<'a> Draft<'a> {
    fn add_outstanding(&mut self, old: &Old, content: Option<&'a Content>) {
        if content.is_some_and(|content| content.is_parked) {
            return self.cached.add(&old.blocks);
        }
        let (oldest, newest) = self.ages_ns.unwrap_or((0, u64::MAX));
        self.ages_ns = Some((oldest.max(old.oldest_ns), newest.min(old.newest_ns)));
        let known = match content {
            Some(Content { type_name: Some(name), part, .. }) => Some((name.as_str(), part.as_deref())),
            _ => None,
        };
        self.outstanding.entry(known).or_default().add(&old.blocks);
    }

    /// What is outstanding, and its types. Estimates are rounded as they add up, so that the rounded ones add up too.
    fn outstanding(&self, scale: &Scale) -> (Sum, Vec<TypeCount>) {
        let (mut exact, mut weighed) = (Sum::default(), Weighed::default());
        let mut types = Vec::new();
        for (known, blocks) in &self.outstanding {
            let before = exact.and(weighed);
            exact.add(blocks.exact);
            weighed.add(blocks.weighed(scale));
            let after = exact.and(weighed);
            if let Some((name, part)) = known {
                types.push(TypeCount {
                    type_name: (*name).to_owned(),
                    part: part.map(str::to_owned),
                    count: after.count - before.count,
                    bytes: after.bytes - before.bytes,
                });
            }
        }
        types.sort_by_key(|known| std::cmp::Reverse((known.bytes, known.count)));
        (exact.and(weighed), types)
    }

    /// How far what is outstanding may be off; `None` where every block of the row stands for itself.
    fn bounds(&self, scale: &Scale, outstanding: Sum) -> Option<Estimate> {
        let mut blocks = Tally::default();
        self.outstanding.values().for_each(|part| blocks.add(part));
        let freed = self.freed_weighed;
        let is_exact = blocks.is_exact() && self.cached.is_exact() && self.unsure_seen.is_exact();
        if is_exact && freed.count <= 0.0 {
            return None;
        }
        let bytes_each = if freed.count > 0.0 { freed.bytes / freed.count } else { 0.0 };
        let told_weight = (self.told.0 > 0).then(|| self.told.1 / self.told.0 as f64);
        Some(blocks.bounds(scale, outstanding, bytes_each, told_weight))
    }

    fn finish(
        &self,
        (pid, domain, is_arena): (u32, Domain, bool),
        scale: &Scale,
        framer: &mut Framer<'_>,
    ) -> StackRow {
        let ms = |ns: u64| ns / 1_000_000;
        let (outstanding, types) = self.outstanding(scale);
        let freed = self.freed.and(self.freed_weighed);
        let unsure = self.unsure.and(self.unsure_seen.weighed(scale));
        let cached = self.cached.rounded(scale);
        StackRow {
            pid,
            target: None,
            domain: domain.name().to_owned(),
            outstanding_count: outstanding.count,
            outstanding_bytes: outstanding.bytes,
            alloc_count: freed.count + outstanding.count,
            alloc_bytes: freed.bytes + outstanding.bytes,
            free_count: freed.count,
            free_bytes: freed.bytes,
            unsure_count: unsure.count,
            unsure_bytes: unsure.bytes,
            cached_count: cached.count,
            cached_bytes: cached.bytes,
            bytes_are: if self.is_held { BytesAre::Held } else { BytesAre::Requested },
            oldest_age_ms: self.ages_ns.map(|(oldest, _)| ms(oldest)),
            newest_age_ms: self.ages_ns.map(|(_, newest)| ms(newest)),
            estimate: self.bounds(scale, outstanding),
            python_types: Some(types).filter(|types| !types.is_empty()),
            label: is_arena.then(|| ARENA.to_owned()),
            verdict: "unknown".to_owned(),
            truncated: self.stack.and_then(|stack| truncation(stack.end)).map(str::to_owned),
            frames: self.stack.map(|stack| framer.frames(stack)).unwrap_or_default(),
        }
    }
}

/// Whether the code object of a Python frame was not read.
fn is_unnamed_python(frame: &Frame) -> bool {
    frame.kind == FrameKind::Python && frame.function.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(part: Option<&str>, family: Option<Family>) -> Content {
        let part = part.map(str::to_owned);
        Content { type_name: Some("x".to_owned()), part, family, is_parked: false }
    }

    #[test]
    fn a_block_has_the_domain_that_the_program_asked() {
        let (object, mem) = (Some(Family::Object), Some(Family::Mem));
        let is_object = content(None, object);
        let (keys, items) = (content(Some("keys"), object), content(Some("items"), mem));
        let memory = content(Some("memory"), None);
        let other = Content::default();
        let cases = [
            // By what is in it, whatever the probe was at.
            (Domain::Malloc, Asked::Unknown, Some(&is_object), Domain::PyObject),
            (Domain::PyObject, Asked::PyMem, Some(&is_object), Domain::PyObject),
            (Domain::Malloc, Asked::Unknown, Some(&keys), Domain::PyObject),
            (Domain::Malloc, Asked::Interpreter, Some(&items), Domain::PyMem),
            (Domain::Malloc, Asked::Unknown, Some(&items), Domain::PyMem),
            (Domain::PyRaw, Asked::Unknown, Some(&items), Domain::PyMem),
            (Domain::PyObject, Asked::PyObject, Some(&items), Domain::PyObject),
            // An extension's object may have memory from anywhere.
            (Domain::Malloc, Asked::Unknown, Some(&memory), Domain::Malloc),
            (Domain::Malloc, Asked::PyRaw, Some(&memory), Domain::PyRaw),
            (Domain::Malloc, Asked::Interpreter, Some(&memory), Domain::PyMem),
            (Domain::PyObject, Asked::Unknown, Some(&memory), Domain::PyMem),
            (Domain::PyRaw, Asked::Unknown, Some(&memory), Domain::PyRaw),
            // What is too large for the pools is asked of `PyMem_RawMalloc` by the other allocators.
            (Domain::PyRaw, Asked::Unknown, Some(&is_object), Domain::PyObject),
            (Domain::PyRaw, Asked::PyMem, Some(&other), Domain::PyMem),
            // Nobody's.
            (Domain::Malloc, Asked::Unknown, Some(&other), Domain::Malloc),
            (Domain::Malloc, Asked::Interpreter, Some(&other), Domain::PyRaw),
            (Domain::PyObject, Asked::Unknown, Some(&other), Domain::PyMem),
            // Freed, or not looked into.
            (Domain::PyObject, Asked::Unknown, None, Domain::PyObject),
            (Domain::PyObject, Asked::PyMem, None, Domain::PyMem),
            (Domain::Malloc, Asked::PyObject, None, Domain::PyObject),
            (Domain::Malloc, Asked::Unknown, None, Domain::Malloc),
        ];
        for (domain, asked, content, expected) in cases {
            assert_eq!(domain_of(domain, asked, content), expected, "{domain:?} {asked:?} {content:?}");
        }
    }
}
