//! Which volume of one version is which volume of another: disks are partitioned anew, volumes grow, numbers move.
//!
//! A volume is known by the id of its file system; where several have the same one (a clone beside its original), by its
//! name among them. Where no file system has that id any more it is known by the id that its table or volume manager gives
//! it (it was formatted anew), else by its name when nothing contradicts that.

use guestfs::disk::Lock;
use serde::{Deserialize, Serialize};

use super::{InsideDisks, VolumeNumber};

/// What a volume is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct VolumeIdentity {
    content_id: Option<String>,
    volume_id: Option<String>,
    name: String,
}

/// The id of what lies in a volume, from its signature or, where that tells none, from the opened file system.
fn content_id(inside: &InsideDisks, number: VolumeNumber) -> Option<String> {
    let volume = inside.volume(number).ok()?;
    if let Some(id) = &volume.content.id {
        return Some(id.clone());
    }
    let file_system = inside.file_system(number).ok()?;
    file_system.facts().id.clone()
}

/// Why the files of a volume cannot be read, if that is for a lock or for what is missing.
pub(super) fn why_closed(inside: &InsideDisks, number: VolumeNumber) -> Option<&str> {
    let volume = inside.volume(number).ok()?;
    match (&volume.reader, &volume.lock) {
        (Err(obstacle), _) | (Ok(_), Some(Lock::Closed(obstacle))) => Some(&obstacle.why),
        _ => None,
    }
}

impl VolumeIdentity {
    /// What a volume is known by.
    pub(super) fn of(inside: &InsideDisks, number: VolumeNumber) -> Option<Self> {
        let volume = inside.volume(number).ok()?;
        Some(Self {
            content_id: content_id(inside, number),
            volume_id: volume.id.clone(),
            name: volume.name.clone(),
        })
    }

    /// Its name in its version.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same volume on other disks, or on these later.
    pub(super) fn find_in(&self, inside: &InsideDisks) -> Option<VolumeNumber> {
        self.find_among(inside, &|number| {
            inside.readable().any(|(one, _)| one == number)
        })
    }

    /// The same volume where its files cannot be read, or one that is locked and may hold it.
    pub(super) fn find_closed_in(&self, inside: &InsideDisks) -> Option<VolumeNumber> {
        let is_closed = |number: VolumeNumber| why_closed(inside, number).is_some();
        let mut locked = inside
            .volumes()
            .filter(|(_, volume)| matches!(volume.lock, Some(Lock::Closed(_))));
        let same = self.find_among(inside, &is_closed);
        same.or_else(|| locked.next().map(|(number, _)| number))
    }

    fn find_among(
        &self,
        inside: &InsideDisks,
        is_meant: &dyn Fn(VolumeNumber) -> bool,
    ) -> Option<VolumeNumber> {
        let meant = || inside.volumes().filter(|(number, _)| is_meant(*number));
        if self.content_id.is_some() {
            let same: Vec<_> = meant()
                .filter(|(number, _)| content_id(inside, *number) == self.content_id)
                .collect();
            let named = same.iter().find(|(_, volume)| volume.name == self.name);
            if let Some((number, _)) = named.or(same.first()) {
                return Some(*number);
            }
        }
        let by_table =
            meant().find(|(_, volume)| self.volume_id.is_some() && volume.id == self.volume_id);
        let by_name = || {
            meant().find(|(_, volume)| {
                volume.name == self.name && (volume.id.is_none() || self.volume_id.is_none())
            })
        };
        by_table.or_else(by_name).map(|(number, _)| number)
    }
}

/// What two volumes have in common, as [`VolumeIdentity::find_in`] tells it, from the strongest.
#[derive(Debug, Clone, Copy)]
enum Likeness {
    ContentAndName,
    Content,
    Table,
    Name,
}

impl VolumeIdentity {
    fn is_like(&self, other: &Self, how: Likeness) -> bool {
        let has_content = self.content_id.is_some() && self.content_id == other.content_id;
        match how {
            Likeness::ContentAndName => has_content && self.name == other.name,
            Likeness::Content => has_content,
            Likeness::Table => self.volume_id.is_some() && self.volume_id == other.volume_id,
            Likeness::Name => {
                self.name == other.name && (self.volume_id.is_none() || other.volume_id.is_none())
            }
        }
    }
}

/// The volumes of a chain of versions, each under one number throughout; versions are given in their order.
#[derive(Debug, Default)]
pub(super) struct VolumesOfChain {
    /// As they were last seen.
    known: Vec<VolumeIdentity>,
}

impl VolumesOfChain {
    /// The numbers of the volumes of the next version: those that they had before, or new ones.
    pub(super) fn numbers_of(&mut self, volumes: &[&VolumeIdentity]) -> Vec<usize> {
        let mut numbers: Vec<Option<usize>> = vec![None; volumes.len()];
        for how in [
            Likeness::ContentAndName,
            Likeness::Content,
            Likeness::Table,
            Likeness::Name,
        ] {
            for (at, known) in self.known.iter().enumerate() {
                if numbers.contains(&Some(at)) {
                    continue;
                }
                let mut free = volumes.iter().zip(&mut numbers);
                let same =
                    free.find(|(volume, number)| number.is_none() && known.is_like(volume, how));
                if let Some((_, number)) = same {
                    *number = Some(at);
                }
            }
        }
        let mut told = Vec::with_capacity(volumes.len());
        for (volume, number) in volumes.iter().zip(numbers) {
            let identity = VolumeIdentity::clone(volume);
            match number.and_then(|at| Some((at, self.known.get_mut(at)?))) {
                Some((at, known)) => {
                    *known = identity;
                    told.push(at);
                }
                None => {
                    told.push(self.known.len());
                    self.known.push(identity);
                }
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(content: Option<&str>, table: Option<&str>, name: &str) -> VolumeIdentity {
        VolumeIdentity {
            content_id: content.map(str::to_owned),
            volume_id: table.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_volume_keeps_its_number_when_clones_come_and_go_and_names_move() {
        let mut chain = VolumesOfChain::default();
        let data = volume(Some("data"), None, "disk1");
        let clone = volume(Some("data"), None, "disk2");
        let other = volume(Some("other"), Some("p7"), "disk0-p1");
        assert_eq!(chain.numbers_of(&[&data]), [0]);
        // A clone beside its original, in any order, is another volume.
        assert_eq!(chain.numbers_of(&[&clone, &data]), [1, 0]);
        assert_eq!(chain.numbers_of(&[&other, &data, &clone]), [2, 0, 1]);
        assert_eq!(chain.numbers_of(&[&data]), [0]);
        // The clone alone is still the clone; under a third name it is the first that has its contents.
        assert_eq!(chain.numbers_of(&[&clone]), [1]);
        let moved = volume(Some("data"), None, "disk9");
        assert_eq!(chain.numbers_of(&[&moved]), [0]);
        // Formatted anew in the same place.
        let anew = volume(Some("new"), Some("p7"), "disk0-p2");
        assert_eq!(chain.numbers_of(&[&anew]), [2]);
        let nameless = volume(None, None, "disk0-p2");
        assert_eq!(chain.numbers_of(&[&nameless]), [2]);
        // The table contradicts the name.
        let placed = volume(None, Some("p8"), "disk5");
        assert_eq!(chain.numbers_of(&[&placed]), [3]);
        assert_eq!(chain.numbers_of(&[&volume(None, Some("p9"), "disk5")]), [4]);
        assert_eq!(chain.numbers_of(&[]), Vec::<usize>::new());
    }
}
