// Leads every name to this machine, as a wildcard in DNS does: to be required before a program.
const dns = require('dns')

const { lookup } = dns
dns.lookup = (name, ...rest) => lookup('127.0.0.1', ...rest)
