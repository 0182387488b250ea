// Package transfer reads and writes the bytes of one disk, on a pool or in an image
// file, as a disk.Source, disk.Reader or disk.Sink. It uses no repository and no
// options of a run.
package transfer
