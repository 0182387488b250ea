// Package attacktest plays the attackers of the threat table of docs/format.md, each
// with exactly the rights of its row, against the commands of an honest user. For
// each attack there is a control: the same attack with the defence switched off,
// which must succeed, so that a test that no longer attacks anything is noticed.
package attacktest
