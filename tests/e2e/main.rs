//! The released program under real clients, from outside. `CAIRN_BIN` names the program.
//!
//! Each module is one kind of attack. The tests named `self_check` prove the checks themselves on servers that lie.

mod crash;
