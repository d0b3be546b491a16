#!/usr/bin/env bash
# Keys and certificates of a federation, by openssl and ssh-keygen. What exists is checked and kept;
# nothing is overwritten. Private keys have mode 0600 and stay where they are made.
#
#   ./keys.sh authority DIR             the consortium's authority: ca.key, ca.pem
#   ./keys.sh server DIR NAME [NAME..]  the coordinator's server.key, server.pem; NAME: how sites
#                                       reach it, a host name or an address
#   ./keys.sh node DIR SITE             a site's SITE.key, which stays there, and SITE.pub
#   ./keys.sh check DIR                 whether all that lies in DIR is of the right kind
set -euo pipefail
umask 077

DAYS_AUTHORITY=3650
DAYS_SERVER=825

die() { echo "keys.sh: $*" >&2; exit 1; }
made() { echo "made: $*"; }
kept() { echo "kept: $*"; }

usage() { sed -n '5,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }

needs() { command -v "$1" >/dev/null || die "$1 is not installed: install $2"; }

# A draft lies beside its target, so that a file is there whole or not at all.
draft() { mktemp "$1/.keys.XXXXXX"; }

public_of_certificate() { openssl x509 -in "$1" -noout -pubkey; }
public_of_key() { openssl pkey -in "$1" -pubout 2>/dev/null; }

both_or_none() {
  if [ -e "$1" ] && [ ! -e "$2" ]; then die "$1 is there and $2 is not: put it back, or move $1 away"; fi
  if [ -e "$2" ] && [ ! -e "$1" ]; then die "$2 is there and $1 is not: put it back, or move $2 away"; fi
  [ -e "$1" ]
}

owner_only() {
  case "$(ls -ld "$1")" in
    -rw-------*|-r--------*) ;;
    *) die "$1 can be read by others: chmod 600 '$1'" ;;
  esac
}

check_pair() {
  owner_only "$1"
  [ "$(public_of_key "$1")" = "$(public_of_certificate "$2")" ] || die "$2 does not belong to $1"
  openssl x509 -in "$2" -noout -checkend 0 >/dev/null || die "$2 has run out: move it and its key away"
}

check_authority() { check_pair "$1/ca.key" "$1/ca.pem"; }

check_server() {
  check_pair "$1/server.key" "$1/server.pem"
  openssl verify -CAfile "$1/ca.pem" -purpose sslserver "$1/server.pem" >/dev/null 2>&1 ||
    die "$1/server.pem is not signed by $1/ca.pem"
}

check_node() {
  local kind
  owner_only "$1/$2.key"
  kind=$(cut -d' ' -f1 "$1/$2.pub")
  case "$kind" in
    ecdsa-sha2-nistp384|ecdsa-sha2-nistp256|ecdsa-sha2-nistp521) ;;
    *) die "$1/$2.pub is of the kind $kind: Flower takes ecdsa keys of a NIST curve; move it away" ;;
  esac
  [ "$(head -n 1 "$1/$2.key")" = "-----BEGIN OPENSSH PRIVATE KEY-----" ] ||
    die "$1/$2.key is not in the format of OpenSSH, which Flower reads; move it away"
  [ "$(ssh-keygen -y -P '' -f "$1/$2.key" 2>/dev/null | cut -d' ' -f1,2)" = "$(cut -d' ' -f1,2 "$1/$2.pub")" ] ||
    die "$1/$2.pub does not belong to $1/$2.key, or the key has a passphrase, which Flower cannot ask for"
}

authority() {
  local key certificate
  if both_or_none "$1/ca.key" "$1/ca.pem"; then
    check_authority "$1"
    kept "$1/ca.key, $1/ca.pem"
    return
  fi
  key=$(draft "$1"); certificate=$(draft "$1")
  openssl ecparam -name secp384r1 -genkey -noout -out "$key"
  openssl req -x509 -new -key "$key" -sha384 -days "$DAYS_AUTHORITY" -out "$certificate" \
    -subj "/CN=authority of a federation" -config /dev/stdin <<'END'
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = authority of a federation
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
  chmod 644 "$certificate"
  mv -n "$key" "$1/ca.key"
  mv -n "$certificate" "$1/ca.pem"
  made "$1/ca.key (offline, with nobody but the authority), $1/ca.pem (for everybody)"
}

kind_of() {
  case "$1" in
    *[!A-Za-z0-9.:_-]*|'') ;;
    *:*:*) case "$1" in *[!0-9A-Fa-f.:]*) ;; *) echo IP; return ;; esac ;;
    *:*) ;;
    *[!0-9.]*) echo DNS; return ;;
    *) echo IP; return ;;
  esac
  die "NAME='$1': expected a host name or an address, no port"
}

server() {
  local folder=$1 names="DNS:localhost,IP:127.0.0.1" name kind option key request certificate extensions
  shift
  [ -e "$folder/ca.pem" ] || die "$folder/ca.pem is missing: ./keys.sh authority '$folder' first"
  for name in "$@"; do
    case "$name" in localhost|127.0.0.1) continue ;; esac
    kind=$(kind_of "$name")  # by itself, so that its failure ends the script
    names="$names,$kind:$name"
  done
  if both_or_none "$folder/server.key" "$folder/server.pem"; then
    check_server "$folder"
    for name in "$@"; do
      option=-checkhost
      if [ "$(kind_of "$name")" = IP ]; then option=-checkip; fi
      case "$(openssl x509 -in "$folder/server.pem" -noout "$option" "$name")" in
        *"does match certificate"*) ;;
        *) die "$folder/server.pem is not for $name: move it and server.key away, then call this again" ;;
      esac
    done
    kept "$folder/server.key, $folder/server.pem"
    return
  fi
  [ -e "$folder/ca.key" ] || die "$folder/ca.key is missing: certificates are signed where the authority is"
  check_authority "$folder"
  key=$(draft "$folder"); request=$(draft "$folder"); certificate=$(draft "$folder"); extensions=$(draft "$folder")
  openssl ecparam -name secp384r1 -genkey -noout -out "$key"
  openssl req -new -key "$key" -sha384 -subj "/CN=coordinator" -out "$request"
  cat >"$extensions" <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
  openssl x509 -req -in "$request" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -sha384 \
    -set_serial "0x$(openssl rand -hex 16)" -days "$DAYS_SERVER" -extfile "$extensions" -out "$certificate" 2>/dev/null ||
    die "openssl did not sign the certificate for $names"
  rm -f "$request" "$extensions"
  chmod 644 "$certificate"
  mv -n "$key" "$folder/server.key"
  mv -n "$certificate" "$folder/server.pem"
  made "$folder/server.key, $folder/server.pem ($names, $DAYS_SERVER days)"
}

node() {
  local work
  case "$2" in
    *[!A-Za-z0-9_.-]*|''|.*|-*) die "SITE='$2': expected letters, digits and _.-" ;;
    ca|server) die "SITE='$2': expected another name, $2.key is the key of the $2" ;;
  esac
  if both_or_none "$1/$2.key" "$1/$2.pub"; then
    check_node "$1" "$2"
    kept "$1/$2.key, $1/$2.pub"
    return
  fi
  work=$(mktemp -d "$1/.keys.XXXXXX")
  # Flower takes ecdsa keys of a NIST curve, without a passphrase, in the format of OpenSSH.
  ssh-keygen -q -t ecdsa -b 384 -N '' -C "$2" -f "$work/key"
  chmod 644 "$work/key.pub"
  mv -n "$work/key" "$1/$2.key"
  mv -n "$work/key.pub" "$1/$2.pub"
  rmdir "$work"
  made "$1/$2.key (stays at this site), $1/$2.pub (for the coordinator)"
}

check_all() {
  local path name found=0
  # The authority's key is offline as a rule.
  if [ -e "$1/ca.key" ]; then check_authority "$1"; kept "$1/ca.pem"; found=1; fi
  if [ -e "$1/server.key" ]; then check_server "$1"; kept "$1/server.pem"; found=1; fi
  for path in "$1"/*.pub; do
    [ -e "$path" ] || continue
    name=$(basename "$path" .pub)
    [ -e "$1/$name.key" ] || die "$path is there and $1/$name.key is not"
    check_node "$1" "$name"
    kept "$path"
    found=1
  done
  [ "$found" = 1 ] || die "$1: expected keys there, made by this script"
}

[ $# -ge 2 ] || usage
command=$1 folder=${2%/}
shift 2
needs openssl openssl
needs ssh-keygen openssh-client
case "$command" in
  authority|server|node) mkdir -p "$folder" ;;
  check) [ -d "$folder" ] || die "$folder: expected a folder" ;;
  *) usage ;;
esac
trap 'rm -rf "$folder"/.keys.??????' EXIT
case "$command" in
  authority) [ $# -eq 0 ] || usage; authority "$folder" ;;
  server) [ $# -ge 1 ] || usage; server "$folder" "$@" ;;
  node) [ $# -eq 1 ] || usage; node "$folder" "$1" ;;
  check) [ $# -eq 0 ] || usage; check_all "$folder" ;;
esac
