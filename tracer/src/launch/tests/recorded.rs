//! Events without their tokens, of several processes.

use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Forked { parent: u32, tgid: u32, shares_memory: bool },
    Exec(u32),
    Mapping(u32),
    Started(u32),
    Exiting(u32, u32),
    Exited(u32, Ended),
    Detached,
}

impl Event {
    pub(super) fn new(event: LaunchEvent) -> (Self, Option<Resume>) {
        match event {
            LaunchEvent::Forked { parent, tgid, shares_memory, resume } => {
                (Self::Forked { parent, tgid, shares_memory }, Some(resume))
            }
            LaunchEvent::Stopped { tgid, at, resume } => {
                let event = match at {
                    StopReason::AtExec => Self::Exec(tgid),
                    StopReason::NewMapping { .. } => Self::Mapping(tgid),
                    StopReason::Started => Self::Started(tgid),
                };
                (event, Some(resume))
            }
            LaunchEvent::Exiting { tgid, tid, resume } => (Self::Exiting(tgid, tid), Some(resume)),
            LaunchEvent::Exited { tgid, how } => (Self::Exited(tgid, how), None),
            LaunchEvent::Detached => (Self::Detached, None),
            LaunchEvent::Failed(error) => panic!("{error}: {error:?}"),
        }
    }

    /// The process that it is about.
    pub(super) fn tgid(&self) -> u32 {
        match *self {
            Self::Forked { tgid, .. } => tgid,
            Self::Exec(tgid) | Self::Mapping(tgid) | Self::Started(tgid) => tgid,
            Self::Exiting(tgid, _) | Self::Exited(tgid, _) => tgid,
            Self::Detached => panic!("of no process"),
        }
    }
}

/// All events until there are no more, letting `look` see each while it is held; without the mappings.
pub(super) fn record(
    events: &mut UnboundedReceiver<LaunchEvent>,
    mut look: impl FnMut(&Event),
) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(event) = events.blocking_recv() {
        let (event, resume) = Event::new(event);
        look(&event);
        if !matches!(event, Event::Mapping(_)) {
            all.push(event);
        }
        drop(resume);
    }
    all
}

/// The events of a command and its children.
pub(super) fn run_all(command: &[&str]) -> Vec<Event> {
    let mut launched = launch(&arguments(command), true).unwrap();
    record(&mut launched.events, |_| {})
}
