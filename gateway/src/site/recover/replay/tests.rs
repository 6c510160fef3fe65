mod catalog;
mod elsewhere;

use super::*;

const VOLUME: VolumeId = VolumeId::from_bytes([1; 16]);
const LINEAGE: LineageId = LineageId::from_bytes([2; 16]);

fn part(generation: u64, base: u64, through: u64) -> VolumeHeader {
    VolumeHeader {
        volume: VOLUME,
        lineage: LINEAGE,
        generation: Generation::new(generation),
        base: WriteSeq::new(base),
        through: WriteSeq::new(through),
    }
}

/// A volume that the checkpoint has through write 100, in term 3, and parts that the pool shows.
fn ends(parts: &[VolumeHeader]) -> Ends {
    let (name, through, term) = ("disk".to_owned(), WriteSeq::new(100), Generation::new(3));
    let volume = Volume { name, lineage: LINEAGE, through, term, size_bytes: 4096 };
    let mut ends = Ends { volumes: [(VOLUME, volume)].into(), ..Ends::default() };
    for part in parts {
        ends.note(part);
    }
    ends
}

#[test]
fn a_part_continues_where_the_volume_ends() {
    let ends = ends(&[]);
    assert!(ends.fit(&part(3, 100, 120)) == Fit::Continues);
    assert!(ends.fit(&part(4, 100, 120)) == Fit::Continues);
    assert!(ends.fit(&part(3, 120, 130)) == Fit::Later);
    assert!(ends.fit(&part(3, 90, 120)) == Fit::Never);
    let reverted = VolumeHeader { lineage: LineageId::from_bytes([9; 16]), ..part(3, 100, 120) };
    assert!(ends.fit(&reverted) == Fit::OtherLineage);
    let stranger = VolumeHeader { volume: VolumeId::from_bytes([9; 16]), ..part(3, 100, 120) };
    assert!(ends.fit(&stranger) == Fit::Stranger);
}

#[test]
fn what_a_committed_batch_leaves_out_is_told() {
    let site = cairn_model::SiteId::from_bytes([5; 16]);
    let ends = ends(&[]);
    let told = |part: VolumeHeader| {
        let mut report = RecoveryReport::new(site, std::path::Path::new("/"), Vec::new());
        let mut strangers = BTreeSet::new();
        ends.tell(&part, ends.fit(&part), &mut strangers, &mut report);
        (report.problems_of.remove(&part.volume), strangers.len())
    };
    // It joins, or is in the checkpoint, or was never committed: nothing is missing.
    assert_eq!(told(part(3, 100, 120)), (None, 0));
    assert_eq!(told(part(3, 90, 100)), (None, 0));
    assert_eq!(told(part(2, 100, 120)), (None, 0));
    // The volume comes back as it was before the revert, or not at all.
    let reverted = VolumeHeader { lineage: LineageId::from_bytes([9; 16]), ..part(3, 100, 120) };
    let (problem, strangers) = told(reverted);
    assert!(problem.is_some_and(|problem| problem.contains("reverted")) && strangers == 0);
    let stranger = VolumeHeader { volume: VolumeId::from_bytes([9; 16]), ..part(3, 100, 120) };
    assert_eq!(told(stranger), (None, 1));
}

#[test]
fn what_an_older_term_left_is_void() {
    // Put before the checkpoint, in a term that ended: it was never committed.
    assert!(ends(&[]).fit(&part(2, 100, 120)) == Fit::Never);
    // Put in the checkpoint's term; the next start cut its log otherwise.
    let (former, latter) = (part(3, 100, 120), part(4, 100, 110));
    let both = ends(&[former, latter, part(4, 110, 140)]);
    assert!(both.fit(&former) == Fit::Never);
    assert!(both.fit(&latter) == Fit::Continues);
    // What was committed before the next start stays: that one began behind it.
    let followed = ends(&[former, part(4, 120, 140)]);
    assert!(followed.fit(&former) == Fit::Continues);
    assert!(followed.fit(&part(4, 120, 140)) == Fit::Later);
}

#[test]
fn a_gap_of_one_volume_costs_no_other_one_anything() {
    let part = part(3, 100, 120);
    let fits = |of: &[Fit]| of.iter().map(|fit| (part, *fit)).collect::<Vec<_>>();
    let count = |of: &[Fit], round| to_commit(&fits(of), round).map(|parts| parts.len());
    for (of, whole, joining, containers) in [
        (&[Fit::Continues, Fit::Never, Fit::Stranger][..], Some(1), Some(1), None),
        (&[Fit::Continues, Fit::Later], None, Some(1), None),
        // What is shared with volumes that were made or reverted since is there.
        (&[Fit::Stranger, Fit::OtherLineage], Some(0), None, Some(0)),
        (&[Fit::Later, Fit::Stranger], None, None, Some(0)),
        (&[Fit::Later, Fit::Never], None, None, None),
        (&[Fit::Never, Fit::Stranger], None, None, None),
        (&[], None, None, None),
    ] {
        assert_eq!(count(of, Round::Whole), whole);
        assert_eq!(count(of, Round::Joining), joining);
        assert_eq!(count(of, Round::Containers), containers);
    }
}

#[test]
fn an_attempt_is_complete_when_all_its_segments_are_there() {
    let told = |number: u8| {
        let placement = Placement::single(NodeId::from_bytes([1; 16]));
        let place = ObjectPlace { key: String::new(), length_bytes: 1, placement };
        Told { id: SegmentId::from_bytes([number; 16]), place, length_bytes: 1, parts: Vec::new() }
    };
    let mut attempt = Attempt::default();
    attempt.segments.insert(0, told(0));
    assert!(!attempt.is_complete(), "how many there are is not known");
    attempt.segments.insert(2, told(2));
    attempt.count = Some(3);
    assert!(!attempt.is_complete(), "the second is missing");
    attempt.segments.insert(1, told(1));
    assert!(attempt.is_complete());
}
