// Package transfer reads and writes the bytes of one disk of a pool or of an image
// file as a disk.Source, disk.Reader or disk.Sink. It has no repository and no
// options of a run.
package transfer
