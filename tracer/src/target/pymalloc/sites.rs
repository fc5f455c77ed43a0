//! Where a CPython's code takes blocks from pymalloc's pools and puts them back.
//!
//! Compilers copy pymalloc's fast path into a hundred functions, which no probe on a function sees. But every
//! copy does the same to a pool (CPython 3.8 to 3.15, `Objects/obmalloc.c`):
//!
//! - a *pop* takes the head of the pool's free list, and looks whether a block is left behind it;
//! - a *push* puts a block before the head, and looks whether there was one.
//!
//! Both end in a conditional jump, which the kernel emulates: one trap, when the deed is done and the address
//! of the block is at hand. A *fresh* pool hands out its first block where its header is written, one that
//! was used before for the same size pops without a look; both are rare.
//!
//! Copies differ in order, registers and choice of instructions. So the code is read with values in place of
//! names: a register holds the head of some pool's free list, the block behind a head, a count of references.
//! Joins of control flow are not followed; the dozen instructions in question lie together.

use std::ops::Range;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// Offsets in `struct pool_header`, the same from 3.8 to 3.15: the first word counts the blocks in use.
const FREE_BLOCK: u64 = 8;
const SIZE_INDEX: u64 = 36;
const NEXT_OFFSET: u64 = 40;
const MAX_NEXT_OFFSET: u64 = 44;
/// `POOL_OVERHEAD`: where the first block of a pool lies.
const FIRST_BLOCK: u64 = 48;

/// Pools that are kept in mind. A copy handles one; what is read in between may look like others.
const MAX_POOLS: usize = 16;

/// What happens at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A block has been taken from a pool's free list.
    Pop,
    /// The first block of a pool has been taken, without its free list.
    Fresh,
    /// A block has been put into a pool's free list.
    Push,
}

/// An instruction at which the address of a block is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// What has happened.
    pub event: Event,
    /// Address of the instruction in the file.
    pub vaddr: u64,
    /// The register, by its number in machine code.
    pub register: u8,
    /// What is to be added to it, bytes.
    pub offset: u16,
    /// Whether the sum is where the address lies in memory, not the address itself.
    pub is_read: bool,
}

/// An address: so many bytes behind one that is not known. Equal numbers stand for equal addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Address {
    number: u32,
    offset: i32,
}

impl Address {
    fn plus(self, bytes: i32) -> Self {
        Self { offset: self.offset.wrapping_add(bytes), ..self }
    }
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// Whatever else, which may be an address.
    Plain(Address),
    /// The head of the free list of `pool`.
    Head { number: u32, pool: Address },
    /// What lies in the first word of the block that `head` points to: the next head.
    Behind { number: u32, head: Address },
    /// The count of references of `pool`, changed by so much; or, on another way there, something else.
    Count { number: u32, pool: Address, change: i8 },
}

impl Value {
    /// The value as an address.
    fn address(self) -> Address {
        match self {
            Self::Plain(address) => address,
            Self::Head { number, .. } | Self::Behind { number, .. } | Self::Count { number, .. } => {
                Address { number, offset: 0 }
            }
        }
    }
}

/// What was seen to be done to a pool.
#[derive(Clone, Copy, Debug, Default)]
struct Pool {
    address: Address,
    /// By how much its count of references was changed.
    counted: i8,
    /// The head in whose place the one behind it was put.
    popped: Option<Address>,
    /// The block that was made the head, when the old one had been written into some block.
    pushed: Option<Address>,
    /// Whether that block is known to be this one.
    is_linked: bool,
    /// Parts of a new header that were written.
    has_first_block: bool,
    has_free_block: bool,
    has_size_index: bool,
    has_next_offset: bool,
    has_max_next_offset: bool,
}

impl Pool {
    fn is_new(&self) -> bool {
        self.has_first_block
            && self.has_free_block
            && self.has_size_index
            && self.has_next_offset
            && self.has_max_next_offset
    }
}

/// A value's place.
#[derive(Clone, Copy, Debug)]
struct Place {
    register: u8,
    offset: u16,
    is_read: bool,
}

impl Place {
    fn site(self, event: Event, vaddr: u64) -> Site {
        Site { event, vaddr, register: self.register, offset: self.offset, is_read: self.is_read }
    }
}

/// Reads code in the order of its addresses.
struct Reader {
    values: [Value; 16],
    /// The last number that was given away.
    last: u32,
    /// The value whose being zero the flags tell.
    tested: Option<Value>,
    pools: Vec<Pool>,
    /// Heads that were written into the first words of blocks.
    first_words: Vec<(Address, Value)>,
    /// Heads on the stack, by their distance from `rsp`.
    spilled: Vec<(u64, Value)>,
    /// Whether the first block of a reused pool is looked for too.
    wants_reused: bool,
    /// A pop after which nobody has looked yet what is left: where, the pool.
    unlooked: Option<(Site, Address)>,
    info: InstructionInfoFactory,
    sites: Vec<Site>,
}

/// The sites in `code`, which lies at `vaddr`. A second look at the function around a fresh pool, which
/// `function_around` tells, finds the reused pools.
pub(super) fn find<'a>(
    sections: impl Iterator<Item = (u64, &'a [u8])> + Clone,
    function_around: impl Fn(u64) -> Option<Range<u64>>,
) -> Vec<Site> {
    let mut sites: Vec<Site> =
        sections.clone().flat_map(|(vaddr, code)| Reader::new(false).read(code, vaddr)).collect();
    let fresh: Vec<u64> =
        sites.iter().filter(|site| site.event == Event::Fresh).map(|site| site.vaddr).collect();
    for function in fresh.into_iter().filter_map(function_around) {
        let code = sections.clone().find_map(|(vaddr, code)| {
            let start = usize::try_from(function.start.checked_sub(vaddr)?).ok()?;
            let end = usize::try_from(function.end.checked_sub(vaddr)?).ok()?;
            code.get(start..end)
        });
        let again = Reader::new(true).read(code.unwrap_or_default(), function.start);
        for site in again {
            if !sites.iter().any(|known| known.vaddr == site.vaddr) {
                sites.push(site);
            }
        }
    }
    sites
}

impl Reader {
    fn new(wants_reused: bool) -> Self {
        let mut reader = Self {
            values: [Value::Plain(Address::default()); 16],
            last: 0,
            tested: None,
            pools: Vec::new(),
            first_words: Vec::new(),
            spilled: Vec::new(),
            wants_reused,
            unlooked: None,
            info: InstructionInfoFactory::new(),
            sites: Vec::new(),
        };
        reader.forget_all();
        reader
    }

    fn read(mut self, code: &[u8], vaddr: u64) -> Vec<Site> {
        let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                self.forget_all();
            } else {
                self.step(&instruction);
            }
        }
        self.sites
    }

    fn step(&mut self, instruction: &Instruction) {
        // The header of a pool was made by the instruction before.
        if let Some(pool) = self.pools.iter().position(Pool::is_new) {
            let pool = self.pools.swap_remove(pool);
            if let Some(place) = self.place_of(pool.address).filter(|place| !place.is_read) {
                let place = Place { offset: FIRST_BLOCK as u16, ..place };
                self.sites.push(place.site(Event::Fresh, instruction.ip()));
            }
        }
        match instruction.flow_control() {
            FlowControl::Next => self.compute(instruction),
            FlowControl::ConditionalBranch => self.branch(instruction.ip()),
            FlowControl::Call | FlowControl::IndirectCall => self.call(),
            _ => {
                if let Some((site, _)) = self.unlooked.take().filter(|_| self.wants_reused) {
                    self.sites.push(site);
                }
                self.forget_all();
            }
        }
    }

    fn fresh_number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn unknown(&mut self) -> Value {
        Value::Plain(Address { number: self.fresh_number(), offset: 0 })
    }

    /// Nothing is known any more.
    fn forget_all(&mut self) {
        for number in 0..self.values.len() {
            self.values[number] = self.unknown();
        }
        self.forget_memory();
        self.unlooked = None;
    }

    fn forget_memory(&mut self) {
        self.tested = None;
        self.pools.clear();
        self.first_words.clear();
        self.spilled.clear();
    }

    /// A call keeps rbx, rbp, rsp and r12 to r15 (System V ABI), and may change all memory.
    fn call(&mut self) {
        for number in [0, 1, 2, 6, 7, 8, 9, 10, 11] {
            self.values[number] = self.unknown();
        }
        self.forget_memory();
        self.unlooked = None;
    }

    fn get(&self, register: Register) -> Option<Value> {
        register.is_gpr64().then(|| self.values[register.number()])
    }

    fn set(&mut self, register: Register, value: Value) {
        if register.is_gpr() {
            self.values[register.full_register().number()] = value;
            if register.full_register() == Register::RSP {
                self.spilled.clear();
            }
        }
    }

    fn pool(&mut self, address: Address) -> &mut Pool {
        let index = match self.pools.iter().position(|pool| pool.address == address) {
            Some(index) => index,
            None => {
                if self.pools.len() == MAX_POOLS {
                    self.pools.remove(0);
                }
                self.pools.push(Pool { address, ..Pool::default() });
                self.pools.len() - 1
            }
        };
        &mut self.pools[index]
    }

    /// A memory operand: the address in the register, and what is added to it.
    fn memory(&self, instruction: &Instruction) -> Option<(Address, u64)> {
        let is_plain = instruction.memory_index() == Register::None
            && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
        let base = self.get(instruction.memory_base()).filter(|_| is_plain)?;
        Some((base.address(), instruction.memory_displacement64()))
    }

    /// Where that address is at hand.
    fn place_of(&self, address: Address) -> Option<Place> {
        let is_it = |value: &Value| value.address() == address;
        if let Some(register) = self.values.iter().position(is_it) {
            return Some(Place { register: register as u8, offset: 0, is_read: false });
        }
        let (offset, _) = self.spilled.iter().find(|(_, value)| is_it(value))?;
        let rsp = Register::RSP.number() as u8;
        Some(Place { register: rsp, offset: u16::try_from(*offset).ok()?, is_read: true })
    }

    fn is_head_of(&self, head: Address, of: Address) -> bool {
        let spilled = self.spilled.iter().map(|(_, value)| value);
        self.values.iter().chain(spilled).any(|value| match value {
            Value::Head { pool, .. } => value.address() == head && *pool == of,
            _ => false,
        })
    }

    /// A conditional jump: is it the look that ends a pop or a push?
    fn branch(&mut self, vaddr: u64) {
        let pool = |found: &dyn Fn(&Pool) -> bool| self.pools.iter().copied().find(found);
        let site = match self.tested {
            Some(Value::Behind { head, .. }) => {
                let is_popped = pool(&|pool| pool.popped == Some(head) && pool.counted == 1).is_some();
                let place = self.place_of(head).filter(|_| is_popped);
                place.map(|place| place.site(Event::Pop, vaddr))
            }
            Some(Value::Head { pool: address, .. }) => {
                // Some versions count before the look, some behind it.
                let is_counted = |pool: &Pool| pool.counted < i8::from(pool.is_linked);
                let pushed =
                    pool(&|pool| pool.address == address && pool.pushed.is_some() && is_counted(pool));
                pushed.and_then(|pool| {
                    let block =
                        pool.pushed.and_then(|block| self.place_of(block)).filter(|block| !block.is_read);
                    // It is the head of the free list now.
                    let head = || {
                        let pool = self.place_of(pool.address).filter(|pool| !pool.is_read)?;
                        Some(Place { offset: FREE_BLOCK as u16, is_read: true, ..pool })
                    };
                    block.or_else(head).map(|place| place.site(Event::Push, vaddr))
                })
            }
            _ => None,
        };
        if site.is_some() {
            self.unlooked = None;
        }
        self.sites.extend(site);
    }

    fn compute(&mut self, instruction: &Instruction) {
        let changed = change(instruction);
        match (instruction.mnemonic(), instruction.op0_kind()) {
            (Mnemonic::Mov, OpKind::Memory) => self.store(instruction),
            (Mnemonic::Mov, _) => self.load(instruction),
            (Mnemonic::Test, OpKind::Register)
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                self.tested = self.get(instruction.op0_register());
            }
            (Mnemonic::Cmp, OpKind::Register) if matches!(instruction.try_immediate(1), Ok(0)) => {
                self.tested = self.get(instruction.op0_register());
            }
            (_, OpKind::Memory) if changed.is_some() => {
                self.tested = None;
                if let (Some((pool, 0)), 4) = (self.memory(instruction), instruction.memory_size().size()) {
                    self.count(pool, i8::try_from(changed.unwrap_or(0)).unwrap_or(0));
                }
            }
            (Mnemonic::Add | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec, OpKind::Register)
                if changed.is_some() =>
            {
                self.result(instruction, instruction.op0_register(), changed.unwrap_or(0));
                self.tested = None;
            }
            (Mnemonic::Lea, _) => {
                if let Some((pool, FIRST_BLOCK)) = self.memory(instruction) {
                    self.pool(pool).has_first_block = true;
                }
                if instruction.memory_index() == Register::None && instruction.memory_base().is_gpr() {
                    let by = instruction.memory_displacement64() as i32;
                    self.result(instruction, instruction.memory_base(), by);
                } else {
                    let value = self.unknown();
                    self.set(instruction.op0_register(), value);
                }
            }
            _ => self.other(instruction),
        }
    }

    /// A register becomes what `from` holds, changed by `by`.
    fn result(&mut self, instruction: &Instruction, from: Register, by: i32) {
        let to = instruction.op0_register();
        let value = match self.values[from.full_register().number()] {
            Value::Count { pool, change: 0, .. } if !to.is_gpr64() => {
                let number = self.fresh_number();
                i8::try_from(by).ok().map(|change| Value::Count { number, pool, change })
            }
            value if to.is_gpr64() => Some(Value::Plain(value.address().plus(by))),
            _ => None,
        };
        let value = value.unwrap_or_else(|| self.unknown());
        self.set(to, value);
    }

    fn count(&mut self, pool: Address, change: i8) {
        self.pool(pool).counted = change;
        // A pop that counts is no first block of a reused pool.
        if self.unlooked.is_some_and(|(_, unlooked)| unlooked == pool) {
            self.unlooked = None;
        }
    }

    fn load(&mut self, instruction: &Instruction) {
        let to = instruction.op0_register();
        let value = match instruction.op1_kind() {
            OpKind::Memory => self.loaded(instruction, to),
            OpKind::Register if to.is_gpr64() => self.get(instruction.op1_register()),
            OpKind::Register if to.is_gpr32() => {
                let from = self.values[instruction.op1_register().full_register().number()];
                Some(from).filter(|from| matches!(from, Value::Count { .. }))
            }
            _ => None,
        };
        let value = value.unwrap_or_else(|| self.unknown());
        self.set(to, value);
    }

    fn loaded(&mut self, instruction: &Instruction, to: Register) -> Option<Value> {
        let base = self.get(instruction.memory_base());
        let (from, offset) = self.memory(instruction)?;
        if instruction.memory_base() == Register::RSP {
            let spilled = self.spilled.iter().find(|(at, _)| *at == offset && to.is_gpr64());
            return spilled.map(|(_, value)| *value);
        }
        match (offset, base) {
            (FREE_BLOCK, _) if to.is_gpr64() => {
                let number = self.fresh_number();
                self.pool(from).popped = None;
                Some(Value::Head { number, pool: from })
            }
            (0, Some(Value::Head { number: head, .. })) if to.is_gpr64() => {
                let head = Address { number: head, offset: 0 };
                Some(Value::Behind { number: self.fresh_number(), head })
            }
            (0, _) if to.is_gpr32() => {
                Some(Value::Count { number: self.fresh_number(), pool: from, change: 0 })
            }
            _ => None,
        }
    }

    fn store(&mut self, instruction: &Instruction) {
        let Some((to, offset)) = self.memory(instruction) else { return };
        let size = instruction.memory_size().size();
        let register = instruction.op1_register();
        let value = match instruction.op1_kind() {
            OpKind::Register if register.is_gpr() => Some(self.values[register.full_register().number()]),
            _ => None,
        };
        if instruction.memory_base() == Register::RSP {
            self.spilled.retain(|(at, _)| at.abs_diff(offset) >= 8);
            if let Some(head @ Value::Head { .. }) = value.filter(|_| size == 8) {
                self.spilled.push((offset, head));
            }
            return;
        }
        match (offset, size) {
            // A block that was popped before is a head by its origin.
            (FREE_BLOCK, 8) => self.store_head(instruction, to, value),
            (_, 8) if matches!(value, Some(Value::Head { .. })) => {
                let at = to.plus(offset as i32);
                self.first_words.retain(|(known, _)| *known != at);
                self.first_words.extend(value.map(|value| (at, value)));
            }
            (0, 4) => {
                if let Some(Value::Count { pool, change, .. }) = value
                    && pool == to
                {
                    self.count(pool, change);
                }
            }
            _ => self.write_header(to, offset, size),
        }
    }

    fn store_head(&mut self, instruction: &Instruction, to: Address, value: Option<Value>) {
        self.pool(to).has_free_block = true;
        match value {
            Some(Value::Behind { head, .. }) if self.is_head_of(head, to) => {
                self.pool(to).popped = Some(head);
                let place = self.place_of(head).filter(|place| !place.is_read);
                self.unlooked = place.map(|place| (place.site(Event::Fresh, instruction.next_ip()), to));
            }
            Some(value) => {
                let block = value.address();
                let is_old = |word: &Value| matches!(word, Value::Head { pool, .. } if *pool == to);
                let mut old = self.first_words.iter().filter(|(_, word)| is_old(word)).peekable();
                let was_written = old.peek().is_some();
                let is_linked = old.any(|(at, _)| *at == block);
                let pool = self.pool(to);
                pool.pushed = was_written.then_some(block);
                pool.is_linked = is_linked;
            }
            None => self.pool(to).pushed = None,
        }
    }

    fn write_header(&mut self, to: Address, offset: u64, size: usize) {
        match (offset, size) {
            (SIZE_INDEX, 4) => self.pool(to).has_size_index = true,
            (NEXT_OFFSET, 4) => self.pool(to).has_next_offset = true,
            (MAX_NEXT_OFFSET, 4) => self.pool(to).has_max_next_offset = true,
            (NEXT_OFFSET, 8) => {
                let pool = self.pool(to);
                pool.has_next_offset = true;
                pool.has_max_next_offset = true;
            }
            _ => {}
        }
    }

    /// What an instruction writes is unknown.
    fn other(&mut self, instruction: &Instruction) {
        if instruction.rflags_modified() != 0 {
            self.tested = None;
        }
        if let OpKind::Memory = instruction.op0_kind()
            && let Some((to, offset)) = self.memory(instruction)
        {
            self.write_header(to, offset, instruction.memory_size().size());
        }
        let is_write = |access| {
            matches!(
                access,
                OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
            )
        };
        let used = self.info.info(instruction).used_registers().iter();
        let mut written = [Register::None; 4];
        for (to, used) in written.iter_mut().zip(used.filter(|used| is_write(used.access()))) {
            *to = used.register();
        }
        for register in written {
            let value = self.unknown();
            self.set(register, value);
        }
    }
}

/// By how much an instruction changes its first operand, where that is a plain sum.
fn change(instruction: &Instruction) -> Option<i32> {
    let by = || instruction.try_immediate(1).ok().map(|by| by as i32);
    match instruction.mnemonic() {
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        Mnemonic::Add => by(),
        Mnemonic::Sub => by().map(i32::wrapping_neg),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
