//! Anonymous mappings, which can be unmapped in parts.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::rows::{RowId, Rows};

/// Mappings are whole pages of this many bytes; larger pages are multiples of it.
const PAGE_BYTES: u64 = 4096;

/// A stretch of pages that belongs to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    start_addr: u64,
    end_addr: u64,
    block: u64,
}

/// What was asked for in one call.
#[derive(Clone, Copy, Debug)]
struct MappedBlock {
    row: RowId,
    time_ns: u64,
    /// First address behind the bytes asked for: the rest of the last page is nobody's.
    asked_end_addr: u64,
    /// Pages still mapped or parked, in bytes.
    held_bytes: u64,
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
    /// Blocks with at least one page.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Enters a mapping. What it overlaps must have been cut out before.
    pub fn insert(&mut self, addr: u64, size_bytes: u64, row: RowId, time_ns: u64) {
        let Some((start_addr, end_addr)) = pages(addr, size_bytes) else { return };
        let block = self.next_block;
        self.next_block += 1;
        self.pieces.insert(start_addr, Piece { start_addr, end_addr, block });
        let asked_end_addr = addr.saturating_add(size_bytes);
        self.blocks
            .insert(block, MappedBlock { row, time_ns, asked_end_addr, held_bytes: end_addr - start_addr });
    }

    /// Takes out the pages of a range and returns the pieces that were in it.
    pub fn cut(&mut self, addr: u64, size_bytes: u64) -> Vec<Piece> {
        let Some((start_addr, end_addr)) = pages(addr, size_bytes) else { return Vec::new() };
        let before = self.pieces.range(..start_addr).next_back().map(|(start, _)| *start);
        let touched: Vec<u64> = before
            .into_iter()
            .chain(self.pieces.range(start_addr..end_addr).map(|(start, _)| *start))
            .collect();
        let mut cut = Vec::new();
        for start in touched {
            let Some(piece) = self.pieces.get(&start).copied() else { continue };
            if piece.end_addr <= start_addr {
                continue;
            }
            self.pieces.remove(&start);
            let inside = Piece {
                start_addr: piece.start_addr.max(start_addr),
                end_addr: piece.end_addr.min(end_addr),
                ..piece
            };
            for rest in [
                Piece { end_addr: inside.start_addr, ..piece },
                Piece { start_addr: inside.end_addr, ..piece },
            ] {
                if rest.start_addr < rest.end_addr {
                    self.pieces.insert(rest.start_addr, rest);
                }
            }
            cut.push(inside);
        }
        cut
    }

    /// Puts back pieces that were cut out. Where something else was mapped meanwhile, that stays and the
    /// pieces are dropped with their block's bytes still outstanding.
    pub fn restore(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.pieces.entry(piece.start_addr).or_insert(piece);
        }
    }

    /// Enters the free of pieces that were cut out.
    pub fn free(&mut self, pieces: Vec<Piece>, rows: &mut Rows) {
        for piece in pieces {
            let Some(block) = self.blocks.get_mut(&piece.block) else { continue };
            let asked_bytes = asked_bytes(&piece, block);
            block.held_bytes = block.held_bytes.saturating_sub(piece.end_addr - piece.start_addr);
            if block.held_bytes == 0 {
                rows.freed(block.row, asked_bytes);
                self.blocks.remove(&piece.block);
            } else {
                rows.freed_part(block.row, asked_bytes);
            }
        }
    }

    /// Every block once: row, bytes asked for that are still there, time. `parked` are pieces cut out by
    /// calls that have not returned.
    pub fn outstanding<'a>(
        &'a self,
        parked: impl Iterator<Item = &'a Piece>,
    ) -> impl Iterator<Item = (RowId, u64, u64)> + 'a {
        let mut bytes: HashMap<u64, u64> = self.blocks.keys().map(|block| (*block, 0)).collect();
        for piece in self.pieces.values().chain(parked) {
            if let (Some(bytes), Some(block)) = (bytes.get_mut(&piece.block), self.blocks.get(&piece.block)) {
                *bytes += asked_bytes(piece, block);
            }
        }
        self.blocks
            .iter()
            .map(move |(id, block)| (block.row, bytes.get(id).copied().unwrap_or(0), block.time_ns))
    }
}

fn asked_bytes(piece: &Piece, block: &MappedBlock) -> u64 {
    piece.end_addr.min(block.asked_end_addr).saturating_sub(piece.start_addr)
}

/// The pages that hold a range; `None` for an empty one.
fn pages(addr: u64, size_bytes: u64) -> Option<(u64, u64)> {
    let start = addr & !(PAGE_BYTES - 1);
    let end = addr.checked_add(size_bytes)?.checked_next_multiple_of(PAGE_BYTES)?;
    (size_bytes > 0).then_some((start, end))
}
