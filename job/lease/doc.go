// Package lease marks the objects that a run creates on a pool, renews these marks
// while the run is alive, decides which runs are dead, and removes their leftovers. It
// never removes an object without such a mark.
package lease
