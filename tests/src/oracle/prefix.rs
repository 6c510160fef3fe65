//! Whether some prefix of some true order of the writes gives the volume.
//!
//! Let P be the writes in the prefix. It holds every write that is seen and every one that must be there, and whatever
//! was over before one of those began. More writes in P only add conditions, so the smallest P is tried. Within P:
//! - A before B puts A in front of B;
//! - a block that shows X puts every other write of P that touches the block in front of X;
//! - a block that shows what it held before the round is touched by no write of P.
//!
//! There is such an order exactly when this graph has no cycle. A chain of moments stands for the quadratic number
//! of pairs of "before". Blocks that show zeroes while a zeroing touches them could come from several writes; they set
//! no condition here, which makes the check weaker there and never wrong.

use super::journal::{Effect, Journal, Moment, Write};
use super::stamp::Seen;
use super::verdict::Violation;
use std::collections::HashMap;

pub(super) fn check(
    journal: &Journal,
    touching: &[Vec<usize>],
    seen: &[Seen],
    must_be_there: impl Fn(&Write) -> bool,
) -> Option<Violation> {
    let shown = shown_writes(journal, touching, seen);
    let inside = smallest_prefix(journal, &shown, must_be_there);
    let mut edges = Vec::new();
    for (block, shown) in shown.iter().enumerate() {
        let others = touching[block].iter().copied().filter(|write| inside[*write]);
        match shown {
            Shown::Unknown => {}
            Shown::Write(last) => {
                edges.extend(others.filter(|write| write != last).map(|write| (write, *last, block)));
            }
            Shown::Base => {
                if let Some(write) = others.into_iter().next() {
                    return Some(untouched(journal, block, write));
                }
            }
        }
    }
    find_cycle(journal, &inside, &edges)
}

/// Which write a block shows.
enum Shown {
    Base,
    Write(usize),
    Unknown,
}

fn shown_writes(journal: &Journal, touching: &[Vec<usize>], seen: &[Seen]) -> Vec<Shown> {
    let by_number: HashMap<u64, usize> =
        journal.writes.iter().enumerate().map(|(index, write)| (write.number, index)).collect();
    let zeroed =
        |block: usize| touching[block].iter().any(|write| journal.writes[*write].effect == Effect::Zeroes);
    let shown = |(block, seen): (usize, &Seen)| match seen {
        Seen::Zero if zeroed(block) => Shown::Unknown,
        Seen::Write(number) => by_number.get(number).map_or(Shown::Base, |index| Shown::Write(*index)),
        Seen::Zero => Shown::Base,
    };
    seen.iter().enumerate().map(shown).collect()
}

fn smallest_prefix(journal: &Journal, shown: &[Shown], must_be_there: impl Fn(&Write) -> bool) -> Vec<bool> {
    let mut inside: Vec<bool> = journal.writes.iter().map(must_be_there).collect();
    for shown in shown {
        if let Shown::Write(write) = shown {
            inside[*write] = true;
        }
    }
    let needed = journal.writes.iter().zip(&inside).filter(|(_, inside)| **inside);
    let last_sent: Moment = needed.map(|(write, _)| write.sent).max().unwrap_or(0);
    for (inside, write) in inside.iter_mut().zip(&journal.writes) {
        *inside |= write.answered.is_some_and(|answered| answered < last_sent);
    }
    inside
}

fn untouched(journal: &Journal, block: usize, write: usize) -> Violation {
    let number = journal.writes[write].number;
    let reason =
        format!("block {block} is as before the round, though write {number} to it belongs to the prefix");
    Violation::NoPrefix { reason }
}

/// Kahn's algorithm over the writes inside the prefix and the chain of moments.
fn find_cycle(journal: &Journal, inside: &[bool], edges: &[(usize, usize, usize)]) -> Option<Violation> {
    let members: Vec<usize> = (0..inside.len()).filter(|index| inside[*index]).collect();
    let mut moments: Vec<Moment> = members
        .iter()
        .flat_map(|index| [Some(journal.writes[*index].sent), journal.writes[*index].answered])
        .flatten()
        .collect();
    moments.sort_unstable();
    let moment_node = |moment: Moment| {
        inside.len() + moments.binary_search(&moment).expect("the moment belongs to a member")
    };
    let mut graph = Graph::new(inside.len() + moments.len());
    for node in inside.len() + 1..inside.len() + moments.len() {
        graph.connect(node - 1, node);
    }
    for index in &members {
        graph.connect(moment_node(journal.writes[*index].sent), *index);
        if let Some(answered) = journal.writes[*index].answered {
            graph.connect(*index, moment_node(answered));
        }
    }
    for (earlier, later, _) in edges {
        graph.connect(*earlier, *later);
    }
    let stuck = graph.nodes_on_or_behind_cycles();
    let (earlier, later, block) =
        edges.iter().find(|(earlier, later, _)| stuck[*earlier] && stuck[*later])?;
    let (earlier, later) = (&journal.writes[*earlier], &journal.writes[*later]);
    let reason = format!(
        "block {block} shows write {} (sent at {}) over write {} (sent at {}, answered at {:?}), which other blocks contradict",
        later.number, later.sent, earlier.number, earlier.sent, earlier.answered
    );
    Some(Violation::NoPrefix { reason })
}

struct Graph {
    successors: Vec<Vec<usize>>,
    predecessors: Vec<usize>,
}

impl Graph {
    fn new(nodes: usize) -> Self {
        Self { successors: vec![Vec::new(); nodes], predecessors: vec![0; nodes] }
    }

    fn connect(&mut self, earlier: usize, later: usize) {
        self.successors[earlier].push(later);
        self.predecessors[later] += 1;
    }

    fn nodes_on_or_behind_cycles(mut self) -> Vec<bool> {
        let mut ready: Vec<usize> =
            (0..self.predecessors.len()).filter(|node| self.predecessors[*node] == 0).collect();
        let mut stuck = vec![true; self.predecessors.len()];
        while let Some(node) = ready.pop() {
            stuck[node] = false;
            for successor in &self.successors[node] {
                self.predecessors[*successor] -= 1;
                if self.predecessors[*successor] == 0 {
                    ready.push(*successor);
                }
            }
        }
        stuck
    }
}
