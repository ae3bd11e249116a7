//! The words in which the stories of a node are told.

use super::server::{Quality, Server};
use super::{Action, End, World, identity};
use machine::{Ask, Command, Mode, Operation, Strategy};
use protocol::status::StateName;
use protocol::wire::EventKind;

/// A node on release 0 whose channel points at release 1.
pub fn offered(strategy: Strategy, mode: Mode, qualities: &[Quality]) -> World {
    let mut all = vec![Quality::Good];
    all.extend(qualities);
    let mut world = World::new(strategy, mode, Server::new(&all));
    world.server.channel = Some(1);
    world
}

pub fn daemon(strategy: Strategy, qualities: &[Quality]) -> World {
    offered(strategy, Mode::Daemon, qualities)
}

pub fn state(world: &World) -> StateName {
    machine::status(world.state().unwrap(), &identity()).state
}

/// Lets operations end well, and time pass, until this one runs.
pub fn until(world: &mut World, wanted: impl Fn(&Operation) -> bool) {
    for _ in 0..60 {
        match world.operation() {
            Some(operation) if wanted(&operation) => return,
            Some(_) => world.finish(End::Well).unwrap(),
            None => world.pass(60).unwrap(),
        }
    }
    panic!("it never runs; the log: {:#?}", world.log);
}

/// Lets operations end well until nothing runs, or the pass is over.
pub fn rest(world: &mut World) {
    for _ in 0..60 {
        if world.operation().is_some() {
            world.finish(End::Well).unwrap();
        } else if world.state().is_some() && world.mode == Mode::Once {
            world.act(&Action::Report(Some(true))).unwrap();
        } else {
            return;
        }
    }
    panic!("it never rests; the log: {:#?}", world.log);
}

pub fn reply(world: &mut World, command: Command) -> String {
    world.act(&Action::Operator(command)).unwrap();
    world.log.iter().rev().find(|line| line.contains("Reply")).unwrap().clone()
}

pub fn events(world: &World) -> Vec<EventKind> {
    world.record().events.iter().map(|event| event.kind).collect()
}

/// The first word of an operation; of a question to the lock, the question.
pub fn word(operation: &Operation) -> String {
    let text = match operation {
        Operation::AskLock(question) => format!("{:?}", question.ask),
        operation => format!("{operation:?}"),
    };
    text.split([' ', '{']).next().unwrap().to_owned()
}

pub fn reboots(operation: &Operation) -> bool {
    matches!(operation, Operation::Reboot)
}

pub fn prepares(operation: &Operation) -> bool {
    matches!(operation, Operation::PrepareReboot { .. })
}

pub fn asks(wanted: &Ask) -> impl Fn(&Operation) -> bool {
    move |operation| matches!(operation, Operation::AskLock(question) if question.ask == *wanted)
}

/// The operations from here to the reboot, by their first words.
pub fn way_to_reboot(world: &mut World) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..60 {
        match world.operation() {
            Some(operation) => {
                seen.push(word(&operation));
                if reboots(&operation) {
                    return seen;
                }
                world.finish(End::Well).unwrap();
            }
            None => world.pass(60).unwrap(),
        }
    }
    panic!("it never reboots: {seen:?}");
}

pub fn waits_for(world: &World) -> String {
    world.state().unwrap().waiting().map(ToString::to_string).unwrap_or_default()
}
