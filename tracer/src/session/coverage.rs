//! Which domains the session's probes cover, and how much of their calls.

use std::collections::BTreeMap;

use tracer_common::probe::Domain;

use super::balance::Shares;
use super::heaps::PoolUse;
use super::traced::Traced;
use crate::model::Coverage;

/// The domains that are traced; `asked` are those named by the user.
pub fn domains(asked: Option<&[Domain]>, traced: &[Traced]) -> Vec<Domain> {
    let is_asked = |domain: Domain| asked.is_none_or(|domains| domains.contains(&domain));
    let has = |domain: Domain| {
        traced.iter().any(|traced| {
            let mut functions = traced.target.sites.iter().filter(|site| site.block.is_none());
            // A probe in the pools sees the blocks of both.
            (is_balanced(traced) && is_pymalloc(domain))
                || functions.any(|site| site.function.domain() == domain)
        })
    };
    Domain::ALL.into_iter().filter(|domain| is_asked(*domain) && has(*domain)).collect()
}

const fn is_pymalloc(domain: Domain) -> bool {
    matches!(domain, Domain::PyMem | Domain::PyObject)
}

/// How much of each domain's calls the probes see.
pub fn coverage(asked: Option<&[Domain]>, traced: &[Traced]) -> BTreeMap<String, Coverage> {
    let of = |share: Option<f64>, how: &str| Coverage {
        alloc_share: share,
        free_share: share,
        how: how.to_owned(),
    };
    let domains = domains(asked, traced);
    let mut coverage: BTreeMap<String, Coverage> =
        domains.iter().map(|domain| (domain.name().to_owned(), of(Some(1.0), "functions"))).collect();
    if traced.iter().any(is_balanced) {
        let measured = measured(traced);
        for domain in domains.iter().filter(|domain| is_pymalloc(**domain)) {
            coverage.insert(domain.name().to_owned(), measured.clone());
        }
    }
    let is_unseen = |traced: &Traced| {
        let has_hidden = || traced.target.unseen_calls().is_some();
        // The kernel has no links for so many probes.
        has_hidden() || (traced.target.has_pool_sites() && !traced.traces_pools())
    };
    if traced.iter().any(is_unseen) {
        for domain in [Domain::PyMem, Domain::PyObject] {
            match asked {
                // Asked for by name they are probed, and how much the probes see is not known.
                Some(domains) if domains.contains(&domain) => {
                    coverage.insert(domain.name().to_owned(), of(None, "inlined"));
                }
                Some(_) => {}
                None => {
                    coverage.insert(domain.name().to_owned(), of(Some(0.0), "inlined"));
                }
            }
        }
    }
    coverage
}

/// Whether what its probes tell of pymalloc can be held against pymalloc's own counts.
fn is_balanced(traced: &Traced) -> bool {
    traced.traces_pools() || traced.target.is_redirected()
}

/// What the pools' own counts say, of the target of which most was missed. Not known of one that ended by itself,
/// and where blocks of some sizes only are traced.
fn measured(traced: &[Traced]) -> Coverage {
    let with_pools = || traced.iter().filter(|traced| is_balanced(traced));
    let of = |share, how: &str| Coverage { alloc_share: share, free_share: share, how: how.to_owned() };
    if with_pools().any(|traced| traced.pool_use == PoolUse::Mimalloc) {
        return of(Some(0.0), "mimalloc");
    }
    if with_pools().all(|traced| traced.pool_use == PoolUse::Malloc) {
        return of(Some(1.0), "malloc");
    }
    let shares = with_pools().filter(|traced| traced.pool_use == PoolUse::Pymalloc).map(|traced| {
        let missed = traced.trace.ledger.inconsistencies();
        traced.balance.as_ref()?.shares(missed.frees_missed + missed.found_free)
    });
    let shares: Option<Vec<_>> = shares.collect();
    let least = |share: fn(&Shares) -> f64| {
        shares.as_ref().map(|shares| shares.iter().map(share).fold(1.0, f64::min))
    };
    Coverage {
        alloc_share: least(|shares| shares.taken),
        free_share: least(|shares| shares.put_back),
        how: if traced.iter().any(Traced::traces_pools) { "sites" } else { "redirected" }.to_owned(),
    }
}
