//! Anonymous mappings and the program break, which can be given back in parts.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use tracer_common::probe::Function;

use super::rows::{RowId, Rows};
use crate::estimate::Weight;

/// Mappings are whole pages of this many bytes; larger pages are multiples of it.
const PAGE_BYTES: u64 = 4096;

/// A range of addresses that a call takes or gives back; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start_addr: u64,
    end_addr: u64,
    /// First address behind the bytes that the call named: the rest of the last page is nobody's.
    asked_end_addr: u64,
}

impl Span {
    /// What a call of `function` (its number) does to `size_bytes` at `addr`; `None` where that is nothing.
    /// Mappings begin and end with pages. The break moves by bytes: neighbours may share a page.
    pub fn of(function: u8, addr: u64, size_bytes: u64) -> Option<Self> {
        let asked_end_addr = addr.checked_add(size_bytes).filter(|end| *end > addr)?;
        let by_bytes = matches!(Function::from_number(function), Some(Function::Sbrk | Function::Brk));
        let (start_addr, end_addr) = if by_bytes {
            (addr, asked_end_addr)
        } else {
            (addr & !(PAGE_BYTES - 1), asked_end_addr.checked_next_multiple_of(PAGE_BYTES)?)
        };
        Some(Self { start_addr, end_addr, asked_end_addr })
    }
}

/// A stretch that belongs to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start_addr: u64,
    end_addr: u64,
    block: u64,
}

/// What was asked for in one call.
#[derive(Clone, Copy, Debug)]
struct MappedBlock {
    row: RowId,
    time_ns: u64,
    asked_end_addr: u64,
    /// Bytes still there, with the rest of the last page.
    held_bytes: u64,
    /// Of these, bytes that were asked for.
    size_bytes: u64,
    is_unsure: bool,
}

/// The mappings of one target.
#[derive(Debug, Default)]
pub struct MappedBlocks {
    /// Pieces by their start; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
    blocks: HashMap<u64, MappedBlock>,
    next_block: u64,
}

impl MappedBlocks {
    /// Blocks of which something is there.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether something in `span` is in the books.
    pub fn has(&self, span: Span) -> bool {
        let last_before_end = self.pieces.range(..span.end_addr).next_back();
        last_before_end.is_some_and(|(_, piece)| piece.end_addr > span.start_addr)
    }

    /// Enters a block. What it overlaps must have been freed before.
    pub fn insert(&mut self, span: Span, row: RowId, time_ns: u64) {
        let Span { start_addr, end_addr, asked_end_addr } = span;
        let block = self.next_block;
        self.next_block += 1;
        let piece = Piece { start_addr, end_addr, block };
        let held_bytes = end_addr - start_addr;
        let entered =
            MappedBlock { row, time_ns, asked_end_addr, held_bytes, size_bytes: 0, is_unsure: false };
        let entered = MappedBlock { size_bytes: asked_bytes(&piece, &entered), ..entered };
        self.pieces.insert(start_addr, piece);
        self.blocks.insert(block, entered);
    }

    /// Enters the free of everything in `span` that is no younger than `born_by_ns`.
    pub fn free(&mut self, span: Span, born_by_ns: u64, rows: &mut Rows) {
        let before = self.pieces.range(..span.start_addr).next_back().map(|(start, _)| *start);
        let inside = self.pieces.range(span.start_addr..span.end_addr).map(|(start, _)| *start);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        for start in touched {
            let Some(piece) = self.pieces.get(&start).copied() else { continue };
            let is_older = self.blocks.get(&piece.block).is_some_and(|block| block.time_ns <= born_by_ns);
            if piece.end_addr <= span.start_addr || !is_older {
                continue;
            }
            self.pieces.remove(&start);
            let freed = Piece {
                start_addr: piece.start_addr.max(span.start_addr),
                end_addr: piece.end_addr.min(span.end_addr),
                ..piece
            };
            let rests = [
                Piece { end_addr: freed.start_addr, ..piece },
                Piece { start_addr: freed.end_addr, ..piece },
            ];
            for rest in rests {
                if rest.start_addr < rest.end_addr {
                    self.pieces.insert(rest.start_addr, rest);
                }
            }
            self.free_piece(&freed, rows);
        }
    }

    fn free_piece(&mut self, piece: &Piece, rows: &mut Rows) {
        let Some(block) = self.blocks.get_mut(&piece.block) else { return };
        let asked_bytes = asked_bytes(piece, block);
        block.held_bytes -= piece.end_addr - piece.start_addr;
        block.size_bytes -= asked_bytes;
        if block.held_bytes == 0 {
            rows.freed(block.row, asked_bytes, block.is_unsure, Weight::EXACT);
            self.blocks.remove(&piece.block);
        } else {
            rows.freed_part(block.row, asked_bytes, block.is_unsure);
        }
    }

    /// Whether [`Self::doubt`] would change anything.
    pub fn has_sure_ones(&self, born_by_ns: u64) -> bool {
        self.blocks.values().any(|block| !block.is_unsure && block.time_ns <= born_by_ns)
    }

    /// Makes every block unsure that is no younger than `born_by_ns`.
    pub fn doubt(&mut self, born_by_ns: u64, rows: &mut Rows) {
        for block in self.blocks.values_mut() {
            if !block.is_unsure && block.time_ns <= born_by_ns {
                block.is_unsure = true;
                rows.doubted(block.row, block.size_bytes, Weight::EXACT);
            }
        }
    }

    /// Every block that is unsure, or every one that is not: row, bytes asked for that are still there, time.
    pub fn blocks(&self, is_unsure: bool) -> impl Iterator<Item = (RowId, u64, u64)> + '_ {
        let chosen = self.blocks.values().filter(move |block| block.is_unsure == is_unsure);
        chosen.map(|block| (block.row, block.size_bytes, block.time_ns))
    }
}

fn asked_bytes(piece: &Piece, block: &MappedBlock) -> u64 {
    piece.end_addr.min(block.asked_end_addr).saturating_sub(piece.start_addr)
}
