class Arc: pass
