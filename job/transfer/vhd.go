package transfer

import (
	"context"
	"crypto/rand"
	"io"
	"time"

	"xenkeep/repo/restore"
	"xenkeep/vhd"
)

// WriteVHD writes a disk as a dynamic VHD file to w, with the time now in its footer.
func WriteVHD(ctx context.Context, im *restore.Image, w io.Writer, now time.Time, o restore.Options) (restore.Result, error) {
	layout := vhd.Layout{Profile: vhd.ForFile, Size: im.Size(), Present: im.Present, Time: vhd.Time(now)}
	layout.ID, _ = vhd.NewUUID(rand.Reader) // does not fail
	return StreamVHD(ctx, im, w, layout, o)
}

// StreamVHD writes a disk to w as the VHD that layout describes.
func StreamVHD(ctx context.Context, im *restore.Image, w io.Writer, layout vhd.Layout, o restore.Options) (restore.Result, error) {
	vw, err := vhd.NewWriter(w, layout)
	if err != nil {
		return restore.Result{}, err
	}
	res, err := im.Run(ctx, vw, o)
	if err != nil {
		return res, err
	}
	return res, vw.Close()
}
