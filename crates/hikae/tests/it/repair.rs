//! Damage is repaired from a healthy copy, even when the repair is killed and repeated.

use std::fs;
use std::os::unix::fs::FileExt;

use super::disk::Random;
use super::kill::{begin, moment, rounds, seeded};
use super::site::{Repository, Site, os};

#[test]
fn a_killed_repair_can_be_repeated_until_all_is_well() {
    let mut random = seeded();
    let site = Site::new();
    let (repository, _, ledger, _) = begin(&site, &mut random);
    let healthy = site.init("healthy");
    let mut copy = repository.repo_arguments("copy", &[]);
    copy.extend([
        os("--to"),
        healthy.place.clone(),
        os("--to-key-file"),
        healthy.key_file.clone().into(),
    ]);
    site.run(copy).expect(0);
    let mut repair = repository.repo_arguments("repair", &[]);
    repair.extend([os("--from"), healthy.place.clone(), os("--from-key-file")]);
    repair.push(healthy.key_file.clone().into());

    let mut typical = None;
    for round in 0..rounds(8) {
        damage_a_pack(&repository, &mut random);
        repository.repo("verify", &[]).expect(3);
        if let Some(typical) = typical {
            let outcome = site
                .start(repair.clone())
                .kill_after(moment(typical, &mut random));
            eprintln!(
                "round {round}: {:?} after {:?}",
                outcome.status, outcome.took
            );
        }
        typical = Some(site.run(repair.clone()).expect(0).took);
        repository.repo("verify", &[]).expect(0);
        ledger.check_one(&repository, &mut random);
    }
}

/// Flips bits in the middle of a random data pack.
fn damage_a_pack(repository: &Repository<'_>, random: &mut Random) {
    let packs = repository.files("data");
    let pack = &packs[usize::try_from(random.below(packs.len() as u64)).expect("small")];
    let mut permissions = fs::metadata(pack).expect("a pack").permissions();
    #[expect(
        clippy::permissions_set_readonly_false,
        reason = "a file of this test's own directory"
    )]
    permissions.set_readonly(false);
    fs::set_permissions(pack, permissions).expect("make it writable");
    let size_bytes = fs::metadata(pack).expect("a pack").len();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(pack)
        .expect("open a pack");
    let offset = 200 + random.below(size_bytes - 400);
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x41], offset).expect("write");
    eprintln!("flipped byte {offset} of {}", pack.display());
}
