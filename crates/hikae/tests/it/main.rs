//! The real binary, as an operator runs it: one process per command, killed and stopped at will.
//!
//! | module | what it proves |
//! |---|---|
//! | [`round_trip`] | what goes in comes out, at the cost that it should |
//! | [`crash`] | the calls that change a repository, each killed before, within and after; what `cargo xtask crash` does at length |
//! | [`kill`] | `kill -9` at any moment of backup, gc and copy loses nothing that was committed |
//! | [`fence`] | a writer that was stopped across a whole gc can never commit |
//! | [`repair`] | damage is repaired from a healthy copy, however often the repair is killed |
//! | [`reader`] | `tools/read_repository.py` reads the same bytes without Hikae |
//! | [`bucket`] | the same repository over S3 |
//! | [`stop`] | what is told to stop by Ctrl-C or SIGTERM leaves no lease and is simply run again |
//! | [`estate`] | the driver for Hyper-V and the lab's estate understand each other, whatever is odd, unknown or hostile |
//! | [`extract`] | folders, tar and zip hold what was put in, as other programs see it, also after a kill |
//! | [`hostile`] | images that lie cost little memory and time, and end with a code that means something |
//! | [`hosts`] | hosts over HTTPS: certificates believed or not and why, logins by certificate, what is refused |
//! | [`inside`] | files of an image and of every version come out as they were put in |
//! | [`lab`] | simulated Hyper-V hosts are served, written down, and asked about their machines |
//! | [`unneeded`] | what `--skip-unneeded` leaves out harms no file system and no file |
//! | [`serve`] | other programs read versions and images, over NBD and as files |
//! | [`names`] | files are found, followed and compared through versions |
//! | [`read_only`] | a repository that cannot be written can be read |
//! | [`words`] | what is typed outweighs the environment; nonsense ends as a problem |
//!
//! `HIKAE_KILL_ROUNDS` and `HIKAE_KILL_SEED` choose how often and from which seed processes are killed.

mod btrfs;
mod bucket;
mod crash;
mod disk;
mod estate;
mod extract;
mod fence;
mod hostile;
mod hosts;
mod inside;
mod kill;
mod lab;
mod names;
mod read_only;
mod reader;
mod repair;
mod round_trip;
mod serve;
mod site;
mod stop;
mod unneeded;
mod vm;
mod words;
