//! Random programs against a naive model that knows the truth, with and without events that are lost.
//!
//! Every allocation has a stack of its own, so that a row of the ledger is one block. Events are lost as the
//! kernel side loses them: one by one, each free that is lost leaving its mark. It never loses an `exec`.

mod world;

use proptest::prelude::*;

use super::*;
use world::World;

const PAGE: u64 = 4096;
const SLOTS: u64 = 8;
const PAGES: u64 = 14;
const THREADS: usize = 3;

/// What a resizing call does.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Fails,
    Gives,
    Moves { to: u64 },
    InPlace,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Allocate {
        slot: u64,
        size: u64,
    },
    Free {
        slot: u64,
    },
    Realloc {
        slot: u64,
        size: u64,
        outcome: Outcome,
    },
    Xallocx {
        slot: u64,
        size: u64,
        fails: bool,
    },
    Map {
        page: u64,
        pages: u64,
        trim: u64,
        is_fixed: bool,
    },
    MapFileOver {
        page: u64,
        pages: u64,
    },
    Unmap {
        page: u64,
        pages: u64,
        trim: u64,
        fails: bool,
    },
    Remap {
        page: u64,
        pages: u64,
        new_pages: u64,
        trim: u64,
        outcome: Outcome,
    },
    /// The thread's call returns.
    Return,
    GrowBreak {
        size: u64,
        by_brk: bool,
    },
    ShrinkBreak {
        size: u64,
        by_brk: bool,
    },
    Fork,
    Exec,
    /// A window of some weight begins, or a phase in which everything is traced.
    Window {
        weight: f64,
    },
    /// A report is made.
    Report,
}

/// An action of a thread, and which of its events are lost.
#[derive(Clone, Copy, Debug)]
struct Step {
    thread: usize,
    action: Action,
    lost: [bool; 2],
}

fn action() -> impl Strategy<Value = Action> {
    let slot = || 0..SLOTS;
    let size = || 0_u64..1000;
    let page = || 0..PAGES;
    let trim = || prop_oneof![Just(0), 1..PAGE];
    let outcome = |to: u64| {
        prop_oneof![
            1 => Just(Outcome::Fails),
            1 => Just(Outcome::Gives),
            3 => (0..to).prop_map(|to| Outcome::Moves { to }),
            1 => Just(Outcome::InPlace),
        ]
    };
    prop_oneof![
        6 => (slot(), size()).prop_map(|(slot, size)| Action::Allocate { slot, size }),
        4 => slot().prop_map(|slot| Action::Free { slot }),
        4 => (slot(), size(), outcome(SLOTS))
            .prop_map(|(slot, size, outcome)| Action::Realloc { slot, size, outcome }),
        1 => (slot(), size(), any::<bool>()).prop_map(|(slot, size, fails)| Action::Xallocx { slot, size, fails }),
        5 => (page(), 1_u64..4, trim(), prop::bool::weighted(0.3))
            .prop_map(|(page, pages, trim, is_fixed)| Action::Map { page, pages, trim, is_fixed }),
        1 => (page(), 1_u64..3).prop_map(|(page, pages)| Action::MapFileOver { page, pages }),
        3 => (page(), 1_u64..4, trim(), prop::bool::weighted(0.2))
            .prop_map(|(page, pages, trim, fails)| Action::Unmap { page, pages, trim, fails }),
        3 => (page(), 1_u64..3, 1_u64..4, trim(), outcome(PAGES))
            .prop_map(|(page, pages, new_pages, trim, outcome)| Action::Remap { page, pages, new_pages, trim, outcome }),
        12 => Just(Action::Return),
        2 => (1_u64..80, any::<bool>()).prop_map(|(size, by_brk)| Action::GrowBreak { size, by_brk }),
        2 => (1_u64..120, any::<bool>()).prop_map(|(size, by_brk)| Action::ShrinkBreak { size, by_brk }),
        1 => Just(Action::Fork),
        2 => prop_oneof![Just(1.0), 1.0..3000.0].prop_map(|weight| Action::Window { weight }),
        1 => prop::bool::weighted(0.2).prop_map(|exec| if exec { Action::Exec } else { Action::Report }),
        1 => Just(Action::Report),
    ]
}

fn steps(loss: f64) -> impl Strategy<Value = Vec<Step>> {
    let lost = || prop::bool::weighted(loss);
    let step = (0..THREADS, action(), [lost(), lost()]);
    prop::collection::vec(step.prop_map(|(thread, action, lost)| Step { thread, action, lost }), 0..150)
}

fn run(steps: &[Step], few_cells: u32) {
    let mut world = World::new(few_cells);
    for step in steps {
        world.take(*step);
    }
    world.report();
    (0..THREADS).for_each(|thread| world.end(thread, false));
    world.report();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn without_loss_the_books_are_the_truth(steps in steps(0.0)) {
        run(&steps, 0);
    }

    #[test]
    fn with_loss_nothing_that_is_free_is_outstanding(steps in steps(0.25), few_cells in 0_u32..4) {
        run(&steps, few_cells);
    }

    #[test]
    fn a_loss_now_and_then_is_no_worse(steps in steps(0.03), few_cells in prop_oneof![Just(0_u32), Just(2)]) {
        run(&steps, few_cells);
    }
}
