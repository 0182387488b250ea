package main

import (
	"github.com/spf13/pflag"

	"xenkeep/chunkstore/object/s3"
)

// s3Flags are the settings of a bucket that its location does not contain.
type s3Flags struct {
	endpoint, region, profile string
	style, checksum, lockMode choice
	caFile, storageClass      string
	parallel                  int
	noOverwrite               bool
}

func (f *s3Flags) add(s *pflag.FlagSet) {
	f.style = choice{text: string(s3.Auto), of: []string{string(s3.Auto), string(s3.Path), string(s3.Virtual)}}
	f.checksum = choice{text: string(s3.SHA256), of: []string{string(s3.SHA256), string(s3.CRC32C), string(s3.MD5), string(s3.None)}}
	f.lockMode = choice{text: string(s3.Compliance), of: []string{string(s3.Compliance), string(s3.Governance)}}
	s.StringVar(&f.endpoint, "s3-endpoint", "", "`URL` of the server for locations s3://bucket/prefix (AWS_ENDPOINT_URL, else Amazon)")
	s.StringVar(&f.region, "s3-region", "", "`region` of the bucket (AWS_REGION, else the server is asked)")
	s.StringVar(&f.profile, "s3-profile", "", "`name` of the profile whose S3 keys are used")
	s.Var(&f.style, "s3-style", "where requests name the bucket: auto, path, virtual")
	s.StringVar(&f.caFile, "s3-ca-file", "", "PEM `file` of CAs that vouch for the S3 server")
	s.StringVar(&f.storageClass, "s3-storage-class", "", "storage `class` of packs")
	s.Var(&f.checksum, "s3-checksum", "what is sent with objects for the server to check: sha256, crc32c, md5, none")
	s.IntVar(&f.parallel, "s3-parallel", 8, "at most `n` concurrent S3 requests")
	s.BoolVar(&f.noOverwrite, "s3-no-overwrite", false, "have the S3 server refuse to replace objects")
	s.Var(&f.lockMode, "s3-lock-mode", "mode of object locks: compliance, governance")
}

func (f *s3Flags) config() s3.Config {
	return s3.Config{
		Region: f.region, Profile: f.profile, Style: s3.Style(f.style.text), CAFile: f.caFile, StorageClass: f.storageClass,
		Checksum: s3.Checksum(f.checksum.text), Parallel: f.parallel, NoOverwrite: f.noOverwrite, LockMode: s3.LockMode(f.lockMode.text),
	}
}
